"""DML: two networks that start together and teach each other (Zhang et al. 2018); no phase of a teacher.

Run:    python -m distill.main --config=distill/configs/dml.py
Smoke:  python -m distill.main --config=distill/configs/dml.py:smoke
Data:   72 characters in 12 font styles, 30 coloured 24-pixel images of each to learn from (embedded, no download).
Expect: see distill/README.md (ours).
Toolbox, CIFAR-100, ResNet8 student and ResNet32 teacher, last epoch, mean of 5 runs: 73.27 % (student alone 71.76).

Every field is explained in student.py; this file names what differs. The same variants as there.
"""

from ml_collections import ConfigDict

from common.config import select
from distill.configs import student

VARIANTS = student.variants()


def get_config(variant: str = "") -> ConfigDict:
    config = student.base()
    config.name = config.method = "dml"
    return select(config, variant, VARIANTS)
