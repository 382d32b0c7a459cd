"""BOIL: body only update in inner loop (Oh, Yoo, Kim, Yun, ICLR 2021): MAML that adapts all but the head.

Run:    python -m fewshot.main --config=fewshot/configs/boil.py
Smoke:  python -m fewshot.main --config=fewshot/configs/boil.py:smoke
Data:   characters of scripts never seen in training, rendered from fonts (embedded, no download).
Expect: about MAML's time per step. The head is learned in the outer loop only.

Every field is explained in cxgrad.py; the variants are MAML's.
"""

from ml_collections import ConfigDict

from common.config import select
from fewshot.configs import maml

VARIANTS = maml.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    config = maml.get_config()
    config.name = "boil"
    config.adapted = "backbone"
    return select(config, variant, VARIANTS)
