"""VID: how well the student's maps predict the teacher's (Ahn et al. 2019).

Run:    python -m distill.main --config=distill/configs/vid.py
Smoke:  python -m distill.main --config=distill/configs/vid.py:smoke
Data:   72 characters in 12 font styles, 30 coloured 24-pixel images of each to learn from (embedded, no download).
Expect: see distill/README.md (ours).

Every field is explained in student.py; this file names what differs. The same variants as there.
"""

from ml_collections import ConfigDict

from common.config import select
from distill.configs import student

VARIANTS = student.variants()


def get_config(variant: str = "") -> ConfigDict:
    config = student.base()
    config.name = config.method = "vid"
    config.options = ConfigDict(
        {
            "weight": 1.0,  # the toolbox lists 0.1, never applies it, and has no result
        }
    )
    return select(config, variant, VARIANTS)
