"""SPT and LSA in Swin (Lee, Lee, Song 2021, arXiv 2112.13492).

Run:    python -m vit_small.main --config=vit_small/configs/swin.py --config.spt=True --config.lsa=True
Smoke:  python -m vit_small.main --config=vit_small/configs/swin.py:smoke
Data:   72 characters in 12 font styles, 10 coloured 32-pixel images of each to learn from (embedded, no download).
Expect: see vit_small/README.md (ours). 1200 steps of about 0.46 s of CPU time with SPT and LSA.

Every field is explained in vit.py; this file names what differs.
Variants with the published settings: :cifar10  :cifar100  :svhn  :tiny_imagenet, and (ours) :fashion_mnist
Official top-1 accuracy, and with SPT and LSA: CIFAR-10 94.46, 95.93; CIFAR-100 76.87, 79.99; SVHN 97.72,
97.92; Tiny-ImageNet 60.87, 64.95 %.
"""

from ml_collections import ConfigDict

from common.config import select
from vit_small.configs import vit

SIZE = {
    **{"model.width": 96, "model.depths": (2, 6, 4)},
    "optimizer.learning_rate": 1e-3,
}
VARIANTS = vit.variants(SIZE, {"model.width": 12, "model.depths": (2, 1, 1), "model.window": 2}, {"model.patch": 4})


def get_config(variant: str = "") -> ConfigDict:
    config = vit.get_config()
    config.name = "swin"
    config.model = ConfigDict(
        {
            **{"architecture": "swin", "patch": 2, "width": 48, "depths": (2, 2, 2), "heads": (3, 6, 12)},
            **{"window": 4, "mlp_ratio": 2},
        }
    )
    config.optimizer.learning_rate = 1e-3
    return select(config, variant, VARIANTS)
