"""FT: factors of the teacher's last map, which a paraphraser learns first (Kim, Park and Kwak 2018).

Run:    python -m distill.main --config=distill/configs/ft.py
Smoke:  python -m distill.main --config=distill/configs/ft.py:smoke
Data:   72 characters in 12 font styles, 30 coloured 24-pixel images of each to learn from (embedded, no download).
Expect: see distill/README.md (ours).
Toolbox, CIFAR-100, ResNet8 student and ResNet32 teacher, last epoch, mean of 5 runs: 73.35 % (student alone 71.76).

Every field is explained in student.py; this file names what differs. The same variants as there.
"""

from ml_collections import ConfigDict

from common.config import select
from distill.configs import student

VARIANTS = student.variants()


def get_config(variant: str = "") -> ConfigDict:
    config = student.base()
    config.name = config.method = "ft"
    config.options = ConfigDict(
        {
            "weight": 500.0,
            "before_activation": True,  # the map before the ReLU; the toolbox passes that after it
            "module_decay": 0.0005,  # times the sum of squared kernels, without 1/2
        }
    )
    return select(config, variant, VARIANTS)
