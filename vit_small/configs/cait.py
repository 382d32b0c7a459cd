"""SPT and LSA in CaiT (Lee, Lee, Song 2021, arXiv 2112.13492).

Run:    python -m vit_small.main --config=vit_small/configs/cait.py --config.spt=True --config.lsa=True
Smoke:  python -m vit_small.main --config=vit_small/configs/cait.py:smoke
Data:   72 characters in 12 font styles, 10 coloured 32-pixel images of each to learn from (embedded, no download).
Expect: see vit_small/README.md (ours). 1200 steps of about 0.43 s of CPU time with SPT and LSA.

Every field is explained in vit.py; this file names what differs.
The official mask of CaiT hides nothing (its value is 0 before the heads are mixed); model.strict_mask: True hides.
Variants with the published settings: :cifar10  :cifar100  :svhn  :tiny_imagenet, and (ours) :fashion_mnist
Official top-1 accuracy, and with SPT and LSA: CIFAR-10 94.91, 95.81; CIFAR-100 76.89, 80.32; SVHN 98.13,
98.28; Tiny-ImageNet 64.37, 67.18 %.
"""

from ml_collections import ConfigDict

from common.config import select
from vit_small.configs import vit

SIZE = {
    **{"model.width": 192, "model.depth": 24, "model.head_dim": 64, "model.hidden": 384},
    "optimizer.learning_rate": 1e-3,
}
VARIANTS = vit.variants(
    SIZE, {"model.width": 16, "model.depth": 2, "model.head_dim": 8, "model.hidden": 32}, {"model.patch": 8}
)


def get_config(variant: str = "") -> ConfigDict:
    config = vit.get_config()
    config.name = "cait"
    config.model = ConfigDict(
        {
            **{"architecture": "cait", "patch": 4, "width": 96, "depth": 6, "class_depth": 2, "heads": 4},
            **{"head_dim": 24, "hidden": 192, "strict_mask": False},
        }
    )
    config.optimizer.learning_rate = 1e-3
    return select(config, variant, VARIANTS)
