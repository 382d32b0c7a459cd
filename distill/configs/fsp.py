"""FSP: Gram matrices between consecutive points, in a phase before the labels (Yim et al. 2017).

Run:    python -m distill.main --config=distill/configs/fsp.py
Smoke:  python -m distill.main --config=distill/configs/fsp.py:smoke
Data:   72 characters in 12 font styles, 30 coloured 24-pixel images of each to learn from (embedded, no download).
Expect: see distill/README.md (ours).
Toolbox, CIFAR-100, ResNet8 student and ResNet32 teacher, last epoch, mean of 5 runs: 72.65 % (student alone 71.76).

Every field is explained in student.py; this file names what differs. The same variants as there.
"""

from ml_collections import ConfigDict

from common.config import select
from distill.configs import student

VARIANTS = student.variants()


def get_config(variant: str = "") -> ConfigDict:
    config = student.base()
    config.name = config.method = "fsp"
    config.stages = "two_stage"  # maps first, then labels alone (toolbox); "joint": both at once
    config.options = ConfigDict(
        {
            "weight": 0.001,
        }
    )
    return select(config, variant, VARIANTS)
