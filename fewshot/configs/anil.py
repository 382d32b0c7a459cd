"""ANIL: almost no inner loop (Raghu, Raghu, Bengio, Vinyals, ICLR 2020): MAML that adapts the head alone.

Run:    python -m fewshot.main --config=fewshot/configs/anil.py
Smoke:  python -m fewshot.main --config=fewshot/configs/anil.py:smoke
Data:   characters of scripts never seen in training, rendered from fonts (embedded, no download).
Expect: faster than MAML: the inner loop never goes through the backbone's gradient.

Every field is explained in cxgrad.py; the variants are MAML's.
"""

from ml_collections import ConfigDict

from common.config import select
from fewshot.configs import maml

VARIANTS = maml.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    config = maml.get_config()
    config.name = "anil"
    config.adapted = "head"
    return select(config, variant, VARIANTS)
