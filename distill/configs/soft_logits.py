"""Soft logits: the student imitates the teacher's softened predictions (Hinton, Vinyals and Dean 2015).

Run:    python -m distill.main --config=distill/configs/soft_logits.py
Smoke:  python -m distill.main --config=distill/configs/soft_logits.py:smoke
Data:   72 characters in 12 font styles, 30 coloured 24-pixel images of each to learn from (embedded, no download).
Expect: see distill/README.md (ours).
Toolbox, CIFAR-100, ResNet8 student and ResNet32 teacher, last epoch, mean of 5 runs: 71.79 % (student alone 71.76).

Every field is explained in student.py; this file names what differs. The same variants as there.
"""

from ml_collections import ConfigDict

from common.config import select
from distill.configs import student

VARIANTS = student.variants()


def get_config(variant: str = "") -> ConfigDict:
    config = student.base()
    config.name = config.method = "soft_logits"
    config.options = ConfigDict(
        {
            "temperature": 4.0,
            "weight": 0.3,  # of the divergence; the rest is cross entropy's
            "square": False,  # times temperature squared, as in the paper; the toolbox leaves it out
        }
    )
    return select(config, variant, VARIANTS)
