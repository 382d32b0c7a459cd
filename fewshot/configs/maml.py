"""MAML: model-agnostic meta-learning (Finn, Abbeel, Levine, ICML 2017), as in the code base that CxGrad builds on.

Run:    python -m fewshot.main --config=fewshot/configs/maml.py
Smoke:  python -m fewshot.main --config=fewshot/configs/maml.py:smoke
Data:   characters of scripts never seen in training, rendered from fonts (embedded, no download).
Expect: see the table in fewshot/README.md (ours); a few minutes on 2 CPU cores.

Every field is explained in cxgrad.py; this file names what differs. First-order MAML: --config.second_order=False.
Variants with the published settings (data sets to be provided by you):
    :mini_imagenet_5way_1shot  :mini_imagenet_5way_5shot  :tiered_imagenet_5way_1shot  :tiered_imagenet_5way_5shot
    with _resnet12 behind any of these: the network of ALFA's experiments
    :omniglot_5way_1shot  :omniglot_20way_1shot (our choice of settings, in the style of MAML++)
"""

from ml_collections import ConfigDict

from common.config import select
from fewshot.configs import cxgrad

TIERED = {**cxgrad.TIERED, "filters": 64}
OMNIGLOT = {
    **cxgrad.PUBLISHED,
    "dataset": "omniglot",
    "image_size": 28,
    "channels": 1,
    "filters": 64,
    "queries": 5,
    "tasks_per_step": 16,
    "inner_learning_rate": 0.1,
    "num_steps": 50_000,
}

VARIANTS = {
    "smoke": cxgrad.SMOKE,
    "smoke_resnet12": cxgrad.VARIANTS["smoke_resnet12"],
    **cxgrad.with_resnet12(
        {
            "mini_imagenet_5way_1shot": cxgrad.MINI,
            "mini_imagenet_5way_5shot": {**cxgrad.MINI, **cxgrad.FIVE_SHOT},
            "tiered_imagenet_5way_1shot": TIERED,
            "tiered_imagenet_5way_5shot": {**TIERED, **cxgrad.FIVE_SHOT},
        }
    ),
    "omniglot_5way_1shot": OMNIGLOT,
    "omniglot_20way_1shot": {**OMNIGLOT, "ways": 20, "tasks_per_step": 8},
}


def get_config(variant: str = "") -> ConfigDict:
    config = cxgrad.get_config()
    config.name = "maml"
    config.method = "maml"
    return select(config, variant, VARIANTS)
