"""Random filters go, one share for all layers: the baseline that every criterion has to beat.

Run:    python -m pruning.main --config=pruning/configs/random.py
Smoke:  python -m pruning.main --config=pruning/configs/random.py:smoke
Data and recipe: as in ekg.py, with its variants, all at once and fine-tuned with plain cross entropy.
Expect: see pruning/README.md (ours).
"""

from ml_collections import ConfigDict

from pruning.configs import ekg

VARIANTS = ekg.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    return ekg.at_once(variant, name="random", method="uniform", criterion="random")
