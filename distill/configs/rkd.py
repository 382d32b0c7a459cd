"""RKD: distances and angles between the images of a batch (Park et al. 2019).

Run:    python -m distill.main --config=distill/configs/rkd.py
Smoke:  python -m distill.main --config=distill/configs/rkd.py:smoke
Data:   72 characters in 12 font styles, 30 coloured 24-pixel images of each to learn from (embedded, no download).
Expect: see distill/README.md (ours).
Toolbox, CIFAR-100, ResNet8 student and ResNet32 teacher, last epoch, mean of 5 runs: 73.40 % (student alone 71.76).

Every field is explained in student.py; this file names what differs. The same variants as there.
"""

from ml_collections import ConfigDict

from common.config import select
from distill.configs import student

VARIANTS = student.variants()


def get_config(variant: str = "") -> ConfigDict:
    config = student.base()
    config.name = config.method = "rkd"
    config.options = ConfigDict(
        {
            "distance": 25.0,  # weights
            "angle": 50.0,
        }
    )
    return select(config, variant, VARIANTS)
