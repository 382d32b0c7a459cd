"""The teacher alone, to be given to several runs as config.teacher_checkpoint.

Run:    python -m distill.main --config=distill/configs/teacher.py --workdir=runs/teacher
        python -m distill.main --config=distill/configs/mhgd.py --config.teacher_checkpoint=runs/teacher
Smoke:  python -m distill.main --config=distill/configs/teacher.py:smoke
Data:   72 characters in 12 font styles, 30 coloured 24-pixel images of each to learn from (embedded, no download).
Expect: see distill/README.md (ours).
Toolbox, CIFAR-100, ResNet32, last epoch, mean of 5 runs: 78.96 %.

Every field is explained in student.py; this file names what differs. The same variants as there.
"""

from ml_collections import ConfigDict

from common.config import select
from distill.configs import student

VARIANTS = student.variants()


def get_config(variant: str = "") -> ConfigDict:
    config = student.base()
    config.name = config.phase = "teacher"
    return select(config, variant, VARIANTS)
