"""What a config of this folder cannot be, said in one sentence before anything slow is done."""

import math

from ml_collections import ConfigDict

from common.config import check, check_choice, check_positive
from common.data.classification import check_moments, check_per_class
from common.models.resnet import STEMS
from multitask import metric_regularizer, task_weighting, tasks, temporal_ensemble
from multitask.models import NAMES, make_encoder


def check_config(config: ConfigDict) -> None:
    """Raise UserError for values that cannot work, alone or together."""
    names = list(config.tasks)
    for name in names:
        known = tasks.names()
        check(config, "tasks", name in known, f"may hold {', '.join(map(repr, known))} only")
    check(config, "tasks", len(set(names)) == len(names), "must not hold a task twice")
    check_positive(config, "num_steps", "batch_size", "eval_batch_size", "encoder.width", "projection.dim")
    check(config, "batch_size", config.batch_size >= 2, "must be at least 2: images are told from one another")
    check_choice(config, "encoder.name", NAMES)
    check_choice(config, "encoder.stem", STEMS)
    check_choice(config, "bn_mode", ("joint", "split"))
    check_choice(config, "transfer.source", ("teacher", "online"))
    check(config, "channels", config.channels == 3, "must be 3: the encoders take colour images")
    check_per_class(config)
    check_moments(config, 3)
    padding = config.augment.padding
    check(config, "augment.padding", 0 <= padding < config.image_size, "must be at least 0 and below the image's side")
    stride = make_encoder(config.encoder.name, config.encoder.stem, config.encoder.width).strides[-1]
    divides = config.image_size % stride == 0
    check(config, "image_size", divides, f"must be a multiple of {stride}, the stride of the encoder")
    doublings = stride.bit_length() - 1
    enough = len(config.decoder.channels) >= doublings
    check(config, "decoder.channels", enough, f"must have at least {doublings} numbers, one for each doubling")
    for name in names:
        tasks.check(name, config)
    if names:
        _check_metric(config)
        _check_ensemble(config)
        _check_weighting(config)


def check_data(config: ConfigDict, num_images: int) -> None:
    """Raise UserError for values that do not fit this number of training images."""
    check(config, "batch_size", config.batch_size <= num_images, f"must be at most {num_images}, the training images")
    clusters = config.clustering_task.num_clusters
    fits = "clustering" not in config.tasks or clusters <= num_images
    check(config, "clustering_task.num_clusters", fits, f"must be at most {num_images}, the training images")


def _numbers(config: ConfigDict, field: str, values: tuple[float, ...]) -> None:
    count = len(config.tasks)
    fits = len(values) in (0, count) and all(math.isfinite(value) and value >= 0 for value in values)
    check(config, field, fits, f"must be empty or have {count} numbers of at least 0, one for each task")


def _check_metric(config: ConfigDict) -> None:
    metric = config.metric
    check_choice(config, "metric.kind", metric_regularizer.KINDS)
    check_choice(config, "metric.mining", metric_regularizer.MINING)
    check_choice(config, "metric.view", ("task", "clean"))
    check_positive(config, "metric.temperature")
    for field in ("beta_max", "margin", "radius"):
        check(config, f"metric.{field}", metric[field] >= 0, "must be at least 0")
    check(config, "metric.ramp", 0 <= metric.ramp <= 1, "must lie in 0..1, a share of all steps")
    _numbers(config, "task_weights", config.task_weights)
    total = sum(config.task_weights)
    check(config, "task_weights", not config.task_weights or abs(total - 1) < 1e-6, "must add up to 1")
    if metric.beta_max and metric.kind == "pairwise":
        check(config, "tasks", len(config.tasks) >= 2, "must be at least 2 tasks for the 'pairwise' regulariser")
        apart = config.tte.mode != "task_snapshot"
        check(config, "metric.kind", apart, "must have an anchor with tte.mode 'task_snapshot': tasks train apart")


def _check_ensemble(config: ConfigDict) -> None:
    tte = config.tte
    check_choice(config, "tte.mode", temporal_ensemble.MODES)
    check_choice(config, "tte.bias_correction", temporal_ensemble.BIAS_CORRECTIONS)
    check_choice(config, "tte.batch_stats", ("ema", "copy"))
    check_choice(config, "tte.order", temporal_ensemble.ORDERS)
    check(config, "tte.alpha", 0 < tte.alpha < 1, "must lie between 0 and 1")
    check(config, "tte.inner_steps", tte.inner_steps >= 1, "must be at least 1")


def _check_weighting(config: ConfigDict) -> None:
    check_choice(config, "weighting.kind", task_weighting.KINDS)
    check_choice(config, "gradient.kind", ("sum", "pcgrad"))
    check_positive(config, "weighting.temperature")
    _numbers(config, "weighting.lambdas", config.weighting.lambdas)
    if config.tte.mode == "task_snapshot":
        apart = "since the tasks of tte.mode 'task_snapshot' take their steps apart"
        check(config, "weighting.kind", config.weighting.kind != "uncertainty", f"must not be this, {apart}")
        check(config, "gradient.kind", config.gradient.kind != "pcgrad", f"must not be this, {apart}")
