"""Filters of smallest BatchNorm scale go (Network Slimming, Liu et al., ICCV 2017), one threshold for all layers.

Run:    python -m pruning.main --config=pruning/configs/bn_gamma.py
Smoke:  python -m pruning.main --config=pruning/configs/bn_gamma.py:smoke
Data and recipe: as in ekg.py, with its variants, all at once and fine-tuned with plain cross entropy.
Expect: see pruning/README.md (ours).
"""

from ml_collections import ConfigDict

from pruning.configs import ekg

VARIANTS = ekg.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    return ekg.at_once(variant, name="bn_gamma", method="global", criterion="bn_gamma")
