"""Filters of smallest L1 norm go (Li et al., ICLR 2017), one share for all layers.

Run:    python -m pruning.main --config=pruning/configs/l1.py
Smoke:  python -m pruning.main --config=pruning/configs/l1.py:smoke
Data and recipe: as in ekg.py, with its variants, all at once and fine-tuned with plain cross entropy.
Expect: see pruning/README.md (ours).
"""

from ml_collections import ConfigDict

from pruning.configs import ekg

VARIANTS = ekg.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    return ekg.at_once(variant, name="l1", method="uniform", criterion="l1")
