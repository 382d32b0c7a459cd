"""IEP: the teacher's embedding procedure, by stacked PCA and message passing (Lee and Song, AAAI 2021).

Run:    python -m distill.main --config=distill/configs/iepkt.py
Smoke:  python -m distill.main --config=distill/configs/iepkt.py:smoke
Data:   72 characters in 12 font styles, 30 coloured 24-pixel images of each to learn from (embedded, no download).
Expect: see distill/README.md (ours).
Authors' poster, CIFAR-100, WRN-16-4 and WRN-40-4 (:cifar100_wrn): 78.12 %, with the black box 78.37, alone 76.09.

Every field is explained in student.py; this file names what differs. The same variants as there.
"""

from ml_collections import ConfigDict

from common.config import select
from distill.configs import student

VARIANTS = student.variants()


def get_config(variant: str = "") -> ConfigDict:
    config = student.base()
    config.name = config.method = "iepkt"
    config.options = ConfigDict(
        {
            "terms": ("interim", "alteration", "black_box"),  # the first two alone: "IEP"
            "iterations": 2,  # of message passing
            "squash": True,  # tanh in the black box, as in the official code
            "rank_tol": 0.0,  # drop components of the second PCA below this share of the first; 0: keep all (official)
            "svd_backend": "auto",  # of the teacher's leading vectors
            "shown_images": 48,  # in the figures; 0: none
        }
    )
    return select(config, variant, VARIANTS)
