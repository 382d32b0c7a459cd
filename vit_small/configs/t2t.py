"""SPT and LSA in T2T-ViT (Lee, Lee, Song 2021, arXiv 2112.13492).

Run:    python -m vit_small.main --config=vit_small/configs/t2t.py --config.spt=True --config.lsa=True
Smoke:  python -m vit_small.main --config=vit_small/configs/t2t.py:smoke
Data:   72 characters in 12 font styles, 10 coloured 32-pixel images of each to learn from (embedded, no download).
Expect: see vit_small/README.md (ours). 1200 steps of about 0.45 s of CPU time with SPT and LSA.

Every field is explained in vit.py; this file names what differs. `soft_splits` - 1 token transformers shrink the
image to a grid of side / 2^soft_splits. `input_scale` and `inner_skip` are as in the official code; False is T2T-ViT.
Variants with the published settings: :cifar10  :cifar100  :svhn  :tiny_imagenet, and (ours) :fashion_mnist
Official top-1 accuracy, and with SPT and LSA: CIFAR-10 95.30, 95.57; CIFAR-100 77.00, 77.36; SVHN 97.90,
97.91; Tiny-ImageNet 60.57, 61.83 %.
"""

from ml_collections import ConfigDict

from common.config import select
from vit_small.configs import vit

SIZE = {
    **{"model.token_width": 64, "model.width": 256, "model.depth": 12, "model.hidden": 512},
    "optimizer.learning_rate": 1e-3,
}
VARIANTS = vit.variants(
    SIZE, {"model.token_width": 8, "model.width": 16, "model.depth": 2, "model.hidden": 32}, {"model.soft_splits": 3}
)


def get_config(variant: str = "") -> ConfigDict:
    config = vit.get_config()
    config.name = "t2t"
    config.model = ConfigDict(
        {
            **{"architecture": "t2t", "soft_splits": 2, "token_width": 32, "width": 96, "depth": 6, "heads": 4},
            **{"hidden": 192, "input_scale": True, "inner_skip": True},
        }
    )
    config.optimizer.learning_rate = 1e-3
    return select(config, variant, VARIANTS)
