"""The toys' config; every toy is a variant of its own name.

Run:    python -m tests.common.toys.main --config=tests/common/toys/config.py:two_optimizers
"""

from ml_collections import ConfigDict

from common.config import select

TOYS = (
    "regression",
    "batch_norm",
    "host_batch",
    "two_optimizers",
    "refresh",
    "host_step",
    "phases",
    "warm_up",
    "done",
    "few_shot",
)


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "toy"
    config.variant = ""
    config.seed = 0
    config.toy = "regression"
    config.batch_size = 16
    config.width = 8
    config.learning_rate = 0.05
    config.momentum = 0.9
    config.num_steps = 20
    config.log_every_steps = 3
    config.eval_every_steps = 5
    config.save_every_steps = 4
    config.eval_batch_size = 24
    config.keep_best = 2
    config.best_metric = "loss"
    config.best_is_largest = False
    config.refresh_every_steps = 6
    config.target = 0.0  # of the loss, where the toy "done" ends
    config.plant = ""  # a NaN in the "loss", "gradient" or "evaluation" of step `plant_step`
    config.plant_step = 0
    config.slow = ""  # "evaluate", "host_step", "compile" or "step": sleeps there for `slow_seconds`
    config.slow_seconds = 0.0
    config.resume_from = ""
    config.init_from = ""
    config.tensorboard = False
    config.wandb_project = ""
    return select(config, variant, {toy: {"toy": toy} for toy in TOYS})
