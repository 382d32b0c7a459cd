"""Plain regression, the baseline of ELIM: the same network, data and number of updates, without any matching.

Run:    python -m fer.main --config=fer/configs/plain.py
Smoke:  python -m fer.main --config=fer/configs/plain.py:smoke
Data:   the SYNTHETIC cartoon faces of fer/configs/elim.py, whose fields and variants these are.
        The difference: two supervised updates in each iteration.
Expect: see fer/README.md (ours). Minutes on two cores.
"""

from ml_collections import ConfigDict

from fer.configs import elim

VARIANTS = elim.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    config = elim.get_config(variant)
    config.name = "plain"
    config.method = "plain"
    return config
