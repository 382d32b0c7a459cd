"""An invariance penalty without transport, a baseline of ELIM: each person's mean residual is punished.

Run:    python -m fer.main --config=fer/configs/penalty.py
Smoke:  python -m fer.main --config=fer/configs/penalty.py:smoke
Data:   the SYNTHETIC cartoon faces of fer/configs/elim.py, whose fields and variants these are.
        The difference: both updates of an iteration are supervised and carry the penalty.
Expect: see fer/README.md (ours). Minutes on two cores.
"""

from ml_collections import ConfigDict

from fer.configs import elim

VARIANTS = elim.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    config = elim.get_config(variant)
    config.name = "penalty"
    config.method = "penalty"
    return config
