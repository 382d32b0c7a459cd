"""From a config to data and recipe: what training, prediction and export have in common."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from anomaly import bank_building
from anomaly.descriptor import PatchDescriptor, descriptor_width
from anomaly.train import Recipe, extract
from common import optim
from common.config import check, check_choice, check_positive
from common.data import anomaly as datasets
from common.evaluation import PerExample
from common.models.backbones import BACKBONES, Backbone, get_backbone, variables_template

THRESHOLDS = ("f1", "normal_max", "normal_quantile")
# Of EfficientNet-B5 the official code divides each tap by its number of channels and doubles the descriptor's width.
_SCALED = ("efficientnet_b5",)


def check_config(config: ConfigDict) -> None:
    """Raise UserError for values that no field can have, before anything slow is done."""
    check_positive(config, "batch_size", "eval_batch_size", "gamma_c", "gamma_d", "neighbours", "repelled", "nu")
    check_positive(config, "kmeans_restarts", "initial_radius")
    for field in ("num_epochs", "eval_every_epochs", "resize", "cache_mib", "distance_chunk"):
        check(config, field, getattr(config, field) >= 0, "must not be negative")
    check(config, "alpha", math.isfinite(config.alpha), "must be a number")
    check(config, "ema_coefficient", 0 <= config.ema_coefficient <= 1, "must lie in 0..1")
    check(config, "threshold_quantile", 0 < config.threshold_quantile <= 1, "must lie above 0 and be at most 1")
    check(config, "seed", 0 <= config.seed < 2**32, "must lie in 0..4294967295")
    check(config, "data_seed", config.data_seed >= 0, "must not be negative")
    several = {"throughput_batch_sizes": config.throughput_batch_sizes}
    several |= {f"grid.{name}": getattr(config.grid, name) for name in ("gamma_c", "gamma_d")}
    for field, numbers in several.items():
        natural = all(isinstance(number, int) and number > 0 for number in numbers)
        check(config, field, natural, "must hold whole numbers above 0 only")
        check(config, field, len(set(numbers)) == len(numbers), "must not hold a number twice")
    pair = len(config.crop) == 2 and all(isinstance(side, int) and side >= 16 for side in config.crop)
    check(config, "crop", pair, "must be (height, width), whole numbers of at least 16")
    if config.rotate_and_crop:  # cuts at random places of a square of this side
        needed = max(config.crop)
        accepted = f"must be at least the longer side of config.crop, {needed}, where config.rotate_and_crop is set"
        check(config, "resize", config.resize >= needed, accepted)
    else:
        too_small, needed = config.resize and config.resize < min(config.crop), min(config.crop)
        accepted = f"must be at least the shorter side of config.crop, {needed}, or 0"
        check(config, "resize", not too_small, accepted)
    check_choice(config, "dataset", datasets.names())
    check_choice(config, "backbone", BACKBONES)
    check_choice(config, "bank", bank_building.BANKS)
    check_choice(config, "threshold", THRESHOLDS)


def make_frame(config: ConfigDict) -> datasets.Frame:
    """How pictures are brought to the network's input size; RD-MVTec crops later, from a square in the middle."""
    crop = (config.resize, config.resize) if config.rotate_and_crop else tuple(config.crop)
    return datasets.Frame(config.resize, crop)


def source_options(config: ConfigDict) -> dict[str, Any]:
    """What only one data set has."""
    return getattr(config, config.dataset).to_dict() if config.dataset in config else {}


def load_data(config: ConfigDict) -> datasets.AnomalyData:
    """The images of the config's category."""
    return datasets.load(
        config.dataset,
        config.category,
        make_frame(config),
        path=config.dataset_path,
        seed=config.data_seed,
        options=source_options(config),
    )


def make_backbone(config: ConfigDict) -> Backbone:
    """The frozen network of the config, without weights."""
    return get_backbone(config.backbone, config.tap_activation, config.padding)


def make_recipe(config: ConfigDict, backbone: Backbone, *, cached: bool) -> Recipe:
    """Everything that is fixed before compilation. Raises UserError where taps would be empty or the bank too small."""
    least = max(backbone.strides)
    check(config, "crop", min(config.crop) >= least, f"must be at least {least} on each side for {backbone.name}")
    shapes = tap_shapes(backbone, tuple(config.crop))
    rows = shapes[0][0] * shapes[0][1] // config.gamma_c
    needed = config.neighbours + config.repelled
    check(
        config, "gamma_c", rows >= needed, f"must leave at least neighbours + repelled = {needed} entries, not {rows}"
    )
    channels = [shape[-1] for shape in shapes]
    width = descriptor_width(channels, config.gamma_d, 2 if config.backbone in _SCALED else 1)
    check(config, "gamma_d", width > 0, f"must be at most {sum(channels)}, the number of channels")
    return Recipe(
        backbone=backbone,
        divide_by_channels=config.backbone in _SCALED,
        network=PatchDescriptor(width, config.commuted),
        optimizer=optim.make_optimizer(config.optimizer),
        neighbours=config.neighbours,
        repelled=config.repelled,
        nu=config.nu,
        alpha=config.alpha,
        initial_radius=config.initial_radius,
        learn_radius=config.learn_radius,
        size=tuple(config.crop),
        chunk=config.distance_chunk,
        tap_shapes=shapes,
        bank_rows=rows,
        cached=cached,
        rotate_and_crop=config.rotate_and_crop,
    )


def tap_shapes(backbone: Backbone, size: tuple[int, int]) -> tuple[tuple[int, int, int], ...]:
    """[h, w, c] of each tap for an input of this size; computes nothing."""
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    endpoints = jax.eval_shape(backbone.module.apply, variables_template(backbone), image)
    shapes = []
    for parts in backbone.taps.values():
        height, width = endpoints[parts[0]].shape[1:3]
        shapes.append((height, width, sum(endpoints[part].shape[-1] for part in parts)))
    return tuple(shapes)


def taps_fit(recipe: Recipe, images: int, limit_mib: float) -> bool:
    """Whether the taps of so many images stay within `limit_mib`."""
    return images * sum(math.prod(shape) for shape in recipe.tap_shapes) * 4 <= limit_mib * 2**20


def cache_taps(recipe: Recipe, variables: Mapping[str, Any], images: Any, batch_size: int) -> Any:
    """Pooled taps of all images, computed once; NumPy arrays [n, h, w, c]."""

    def taps(variables, images, indices):
        return tuple(extract(recipe, variables, images[indices]))

    return PerExample(taps, len(images), batch_size)(variables, images)
