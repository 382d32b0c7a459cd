"""TAPL: transductive adaptation by task-specific pseudo labels (Lee, Lee, Song, arXiv 2304.11173), on MAML.

Run:    python -m fewshot.main --config=fewshot/configs/tapl.py
Smoke:  python -m fewshot.main --config=fewshot/configs/tapl.py:smoke
Data:   characters of scripts never seen in training, rendered from fonts (embedded, no download).
Expect: about eight times MAML's time per step, since the inner loop adapts to all images of an episode. The paper's
        numbers are not known to us, and its procedure is completed by us (fewshot/README.md says where).

Every field is explained in cxgrad.py; this file names what differs. On CxGrad: --config.method=cxgrad. Ablations:
    --config.transduction=off                     no pseudo labels: MAML
    --config.tapl.pseudo_labels=first_step        from the initial features alone
    --config.tapl.gradient=hard                   or soft_constant
    --config.tapl.query_weight=0.0                lambda; only batch norm sees the query images
    --config.propagation.neighbours=0             all pairs; also alpha, sigma, keep_diagonal
    --config.transduction=propagation             no inner loop: direct prediction, as TPN
Variants with the settings that CxGrad's authors publish for their methods (data sets to be provided by you):
    :mini_imagenet_5way_1shot  :mini_imagenet_5way_5shot  :tiered_imagenet_5way_1shot  :tiered_imagenet_5way_5shot
"""

from ml_collections import ConfigDict

from common.config import select
from fewshot.configs import cxgrad, maml

# Over so many steps sigma is learned; over the few hundred of the default it keeps about its first value.
LEARNED_SIGMA = {"propagation.initial_sigma": 1.0}
MINI = {**cxgrad.MINI, **LEARNED_SIGMA}
TIERED = {**maml.TIERED, **LEARNED_SIGMA}

VARIANTS = {
    "smoke": cxgrad.SMOKE,
    "mini_imagenet_5way_1shot": MINI,
    "mini_imagenet_5way_5shot": {**MINI, **cxgrad.FIVE_SHOT},
    "tiered_imagenet_5way_1shot": TIERED,
    "tiered_imagenet_5way_5shot": {**TIERED, **cxgrad.FIVE_SHOT},
}


def get_config(variant: str = "") -> ConfigDict:
    config = maml.get_config()
    config.name = "tapl"
    config.transduction = "tapl"
    # Chosen on validation episodes with features of a short MAML run: 54 % of the pseudo labels right; from 1, 27 %.
    config.propagation.initial_sigma = 0.1
    return select(config, variant, VARIANTS)
