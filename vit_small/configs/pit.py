"""SPT and LSA in PiT (Lee, Lee, Song 2021, arXiv 2112.13492).

Run:    python -m vit_small.main --config=vit_small/configs/pit.py --config.spt=True --config.lsa=True
Smoke:  python -m vit_small.main --config=vit_small/configs/pit.py:smoke
Data:   72 characters in 12 font styles, 10 coloured 32-pixel images of each to learn from (embedded, no download).
Expect: see vit_small/README.md (ours). 1200 steps of about 0.53 s of CPU time with SPT and LSA.

Every field is explained in vit.py; this file names what differs.
Variants with the published settings: :cifar10  :cifar100  :svhn  :tiny_imagenet, and (ours) :fashion_mnist
Official top-1 accuracy, and with SPT and LSA: CIFAR-10 94.24, 95.88; CIFAR-100 74.99, 79.00; SVHN 97.83,
97.93; Tiny-ImageNet 60.25, 62.91 %.
"""

from ml_collections import ConfigDict

from common.config import select
from vit_small.configs import vit

SIZE = {
    **{"model.width": 96, "model.depths": (2, 6, 4), "model.head_dim": 48},
    "optimizer.learning_rate": 1e-3,
}
VARIANTS = vit.variants(SIZE, {"model.width": 8, "model.depths": (1, 1, 1), "model.head_dim": 4}, {"model.patch": 4})


def get_config(variant: str = "") -> ConfigDict:
    config = vit.get_config()
    config.name = "pit"
    config.model = ConfigDict(
        {
            **{"architecture": "pit", "patch": 2, "width": 48, "depths": (1, 3, 2), "heads": (2, 4, 8)},
            **{"head_dim": 24, "mlp_ratio": 2},
        }
    )
    config.optimizer.learning_rate = 1e-3
    return select(config, variant, VARIANTS)
