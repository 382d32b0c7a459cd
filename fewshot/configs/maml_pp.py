"""MAML++: how to train your MAML (Antoniou, Edwards, Storkey, ICLR 2019).

Run:    python -m fewshot.main --config=fewshot/configs/maml_pp.py
Smoke:  python -m fewshot.main --config=fewshot/configs/maml_pp.py:smoke
Data:   characters of scripts never seen in training, rendered from fonts (embedded, no download).
Expect: slower than MAML, since the query loss is taken after every inner step.

Every field is explained in cxgrad.py; this file names what differs: multi-step loss, learned inner rates per tensor and
step, norm parameters per step, first-order warm-up (the two train steps are compiled one after the other).
"""

from ml_collections import ConfigDict

from common.config import select
from fewshot.configs import cxgrad, maml

MINI = {**cxgrad.MINI, "first_order_steps": 25_000, "multi_step_loss_epochs": 15}

VARIANTS = {
    "smoke": {**cxgrad.SMOKE, "first_order_steps": 2},
    "mini_imagenet_5way_1shot": MINI,
    "mini_imagenet_5way_5shot": {**MINI, **cxgrad.FIVE_SHOT},
    "omniglot_5way_1shot": maml.OMNIGLOT,
    "omniglot_20way_1shot": {**maml.OMNIGLOT, "ways": 20, "tasks_per_step": 8},
}


def get_config(variant: str = "") -> ConfigDict:
    config = maml.get_config()
    config.name = "maml_pp"
    config.learned_inner_rates = True
    config.per_step_norm = True
    config.multi_step_loss_epochs = 6
    config.first_order_steps = 200
    return select(config, variant, VARIANTS)
