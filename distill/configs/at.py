"""AT: student and teacher look at the same places (Zagoruyko and Komodakis 2017).

Run:    python -m distill.main --config=distill/configs/at.py
Smoke:  python -m distill.main --config=distill/configs/at.py:smoke
Data:   72 characters in 12 font styles, 30 coloured 24-pixel images of each to learn from (embedded, no download).
Expect: see distill/README.md (ours).
Toolbox, CIFAR-100, ResNet8 student and ResNet32 teacher, last epoch, mean of 5 runs: 72.31 % (student alone 71.76).

Every field is explained in student.py; this file names what differs. The same variants as there.
"""

from ml_collections import ConfigDict

from common.config import select
from distill.configs import student

VARIANTS = student.variants()


def get_config(variant: str = "") -> ConfigDict:
    config = student.base()
    config.name = config.method = "at"
    config.options = ConfigDict(
        {
            "beta": 1000.0,
        }
    )
    return select(config, variant, VARIANTS)
