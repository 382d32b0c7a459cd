"""What a config of this folder may say; every mistake is one sentence, before anything slow is done."""

import jax
from ml_collections import ConfigDict

from common.config import check, check_choice, check_positive
from fewshot import data, report, tapl
from fewshot.adaptation import TRANSDUCTION
from fewshot.convolution import CONVOLUTIONS, TASK_LOOPS
from fewshot.evaluation import AVERAGES
from fewshot.length_scale import SIGMAS
from fewshot.maml import ADAPTED

_CHOICES = {
    "network": ("conv4", "resnet12"),
    "method": ("maml", "cxgrad"),
    "adapted": ADAPTED,
    "transduction": TRANSDUCTION,
    "sampler": ("device", "official"),
    "images_on": ("auto", "device", "host"),
    "norm": ("batch", "layer"),
    "normalize": ("none", "dataset"),
    "dtype": ("float32", "bfloat16"),
    "batch_norm": ("batch", "support_stats"),
    "context": ("learned", "off"),
    "scaling": ("learned", "fixed_one"),
    "ensemble": AVERAGES,
    "best_metric": report.VALIDATION_METRICS,
    "convolution": ("auto", *CONVOLUTIONS),
    "task_loop": ("auto", *TASK_LOOPS),
    "inner_loop": ("auto", "scan", "unroll"),
    "remat": ("auto", "on", "off"),
}


def check_config(config: ConfigDict) -> None:
    """Raise UserError for values that no field can have, and for fields that do not go together."""
    for field, choices in _CHOICES.items():
        check_choice(config, field, choices)
    only_evaluates = config.num_steps == 0 and bool(config.init_from or config.resume_from)
    accepted = "must be a number above 0, or 0 to evaluate what config.init_from holds"
    check(config, "num_steps", config.num_steps > 0 or only_evaluates, accepted)
    check_positive(config, "inner_steps", "tasks_per_step", "filters", "steps_per_epoch", "context_size")
    check_positive(config, "inner_learning_rate", "episodes_per_batch", "keep_best")
    for field in ("eval_episodes", "test_episodes"):
        check(config, field, getattr(config, field) >= 2, "must be at least 2 for an interval over episodes")
    enough = config.eval_analysis_episodes >= 2 or config.eval_analysis_episodes == 0
    check(config, "eval_analysis_episodes", enough, "must be at least 2 for an interval over episodes, or 0 for all")
    for field in ("first_order_steps", "multi_step_loss_epochs", "context_learning_rate"):
        check(config, field, getattr(config, field) >= 0, "must not be negative")
    check(config, "model_seed", config.model_seed < 2**32, "must be below 4294967296, or negative to use config.seed")
    data.check_evaluation(config)
    _check_network(config)
    layers_left = config.method != "cxgrad" or config.adapted != "head"
    accepted = "CxGrad scales convolution layers, so they must adapt: 'all' or 'backbone'"
    check(config, "adapted", layers_left, accepted)
    if config.transduction != "off":
        _check_transduction(config)


def _check_network(config: ConfigDict) -> None:
    if config.network == "resnet12":
        check(config, "norm", config.norm == "batch", "must be 'batch' with config.network 'resnet12'")
        check(config, "pooling", bool(config.pooling), "must be True with config.network 'resnet12'")
    per_step_of_layer_norm = config.per_step_norm and config.norm != "batch"
    check(config, "norm", not per_step_of_layer_norm, "must be 'batch' with config.per_step_norm")
    smallest, halvings = (8, "three") if config.network == "resnet12" else (16 if config.pooling else 1, "four")
    check(config, "image_size", config.image_size >= smallest, f"must be at least {smallest} for {halvings} halvings")


def _check_transduction(config: ConfigDict) -> None:
    """The part of `check_config` that only counts where query images take part in the adaptation."""
    check_choice(config, "propagation.sigma", SIGMAS)
    check_choice(config, "tapl.gradient", tapl.GRADIENTS)
    check_choice(config, "tapl.pseudo_labels", tapl.WHEN)
    check_choice(config, "tapl.mean", tapl.MEANS)
    check_positive(config, "propagation.initial_sigma")
    has_map = config.propagation.sigma != "per_image" or config.network == "conv4"
    check(config, "propagation.sigma", has_map, "must be 'fixed' or 'scalar' with config.network 'resnet12'")
    others = config.ways * (config.shots + config.queries) - 1
    fits = 0 <= config.propagation.neighbours <= others
    accepted = f"must lie in 0..{others}, the other images of an episode (0: all of them)"
    check(config, "propagation.neighbours", fits, accepted)
    check(config, "propagation.alpha", 0 <= config.propagation.alpha < 1, "must be at least 0 and below 1")
    finite = 0 <= config.tapl.query_weight < float("inf")
    check(config, "tapl.query_weight", finite, "must be a finite number that is not negative")
    threshold = config.tapl.confidence_threshold
    check(config, "tapl.confidence_threshold", 0 <= threshold < 1, "must be at least 0 and below 1")
    transductive = f"must be 'batch' with config.transduction={config.transduction!r}: queries are adapted to together"
    check(config, "batch_norm", config.batch_norm == "batch", transductive)
    no_batch = "must be 'auto' or 'map' on CPUs, where jaxlib may wait forever for a batch of label propagations"
    check(config, "task_loop", config.task_loop != "vmap" or jax.default_backend() != "cpu", no_batch)
    if config.tapl.adapt_sigma:
        needed = {"propagation.sigma": ("scalar",), "tapl.pseudo_labels": ("every_step",), "tapl.gradient": tapl.SOFT}
        for field, values in needed.items():
            accepted = f"must be {' or '.join(map(repr, values))} with config.tapl.adapt_sigma"
            check(config, field, config[field] in values, accepted)
    if config.transduction == "propagation":
        no_loop = "with config.transduction='propagation', which has no inner loop"
        check(config, "method", config.method == "maml", f"must be 'maml' {no_loop}")
        check(config, "multi_step_loss_epochs", not config.multi_step_loss_epochs, f"must be 0 {no_loop}")
        for field in ("learned_inner_rates", "per_step_norm"):
            check(config, field, not config[field], f"must be False {no_loop}")
