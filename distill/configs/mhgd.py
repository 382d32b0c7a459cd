"""MHGD: attention between the images of a batch, learned on the teacher first (Lee and Song, BMVC 2019).

Run:    python -m distill.main --config=distill/configs/mhgd.py
Smoke:  python -m distill.main --config=distill/configs/mhgd.py:smoke
Data:   72 characters in 12 font styles, 30 coloured 24-pixel images of each to learn from (embedded, no download).
Expect: see distill/README.md (ours).
Official, CIFAR-100, toolbox (ResNet8, ResNet32), last epoch, mean of 5 runs: 73.98 % against 71.76 alone.

Every field is explained in student.py; this file names what differs. The same variants as there.
"""

from ml_collections import ConfigDict

from common.config import select
from distill.configs import student

VARIANTS = student.variants()


def get_config(variant: str = "") -> ConfigDict:
    config = student.base()
    config.name = config.method = "mhgd"
    config.options = ConfigDict(
        {
            "heads": 8,
            "squash": True,  # tanh before the softmax, as in the official code
            "svd_gradient": "toolbox",  # or "paper", "published", "exact": distill/svd.py
            "svd_backend": "auto",  # of the student: "svd" or "eigen", by the shape of the map
            "teacher_svd": "auto",  # or "svd", "eigen", "power"
            "canonical_sign": True,  # False: the decomposition's own signs (official)
            "published_near_square": False,  # True: nearly square maps give no gradient (official)
        }
    )
    return select(config, variant, VARIANTS)
