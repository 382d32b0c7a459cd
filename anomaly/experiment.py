"""Wires data, backbone and steps together, from a config; one phase, or one for each category."""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, UInt8
from ml_collections import ConfigDict

from anomaly import augment, bank_building, report, setup, summary, throughput, train
from anomaly.evaluation import detection_metrics, why_undefined
from common import parallel, rng
from common.config import check
from common.data import anomaly as datasets
from common.data.anomaly import mvtec, textures
from common.evaluation import PerExample
from common.experiment import Experiment, Phase, TrainState
from common.models.backbones import load_variables

CATEGORIES = {"mvtec_ad": mvtec.CATEGORIES, "textures": textures.CATEGORIES}


def phases(config: ConfigDict) -> list[Phase]:
    """One phase without a name; or one for each category of the data set (category "all"), for each pair of
    config.grid, or for both, and a table of them."""
    setup.check_config(config)
    over_categories, in_grid = config.category == "all", any(config.grid.values())
    if over_categories:
        known = config.dataset in CATEGORIES
        check(config, "category", known, f"must be one category, since {config.dataset!r} has no list")
    if not (over_categories or in_grid):
        return [Phase("", build, _schedule(config))]
    pairs = summary.grid(config)
    if in_grid:
        largest = config.copy_and_resolve_references()
        largest.gamma_c, largest.gamma_d = map(max, zip(*pairs, strict=True))
        setup.make_recipe(largest, setup.make_backbone(largest), cached=False)  # says now what would fail at the end
    found, write_table = [], summary.write_compressions if in_grid else summary.write_categories
    for category in CATEGORIES[config.dataset] if over_categories else [config.category]:
        own = config.copy_and_resolve_references()
        own.category = category
        schedule = _schedule(own)
        for gamma_c, gamma_d in pairs:
            name = "-".join([category] * over_categories + [f"gamma_c{gamma_c}-gamma_d{gamma_d}"] * in_grid)
            fields = {"category": category, "gamma_c": gamma_c, "gamma_d": gamma_d} | schedule
            found.append(Phase(name, functools.partial(build, write_table=write_table), fields, reported=True))
    return found


def _schedule(config: ConfigDict) -> dict[str, Any]:
    """Steps of training and between evaluations, which follow from the number of training images."""
    if not config.num_epochs:
        check(config, "num_steps", config.num_steps > 0, "must be above 0 where config.num_epochs is 0")
        return {}
    images = datasets.count_training_images(
        config.dataset,
        config.category,
        path=config.dataset_path,
        seed=config.data_seed,
        options=setup.source_options(config),
    )

    def steps(epochs: int) -> int:
        per_epoch = images // config.batch_size if config.drop_last and images >= config.batch_size else None
        return epochs * per_epoch if per_epoch else -(-epochs * images // config.batch_size)

    every = steps(config.eval_every_epochs)
    return {"num_steps": steps(config.num_epochs), "eval_every_steps": every, "save_every_steps": every}


def build(
    config: ConfigDict, finished: Mapping[str, TrainState], write_table: report.WriteTable | None = None
) -> Experiment:
    """The experiment of a config of this folder; raises UserError on what cannot work."""
    del finished
    setup.check_config(config)
    dataset = setup.load_data(config)
    print(dataset.summary())
    missing = why_undefined(dataset.labels, dataset.masks, config.official_pro)
    if missing and parallel.is_main():
        print(f"Warning: of {dataset.name}, {missing}.", file=sys.stderr)
    if config.rotate_and_crop:
        dataset = turn_test_images(dataset, config)
    backbone = setup.make_backbone(config)
    variables = load_variables(backbone, config.weights or backbone.default_weights, seed=config.seed)
    recipe = setup.make_recipe(config, backbone, cached=False)
    images = len(dataset.train) + len(dataset.test)
    if setup.taps_fit(recipe, images, config.cache_mib) and not config.rotate_and_crop:
        recipe = recipe._replace(cached=True)

    count, used = len(dataset.train), len(dataset.train)
    if config.drop_last and count >= config.batch_size:
        used = count // config.batch_size * config.batch_size
    test = _scorer(recipe, "test", len(dataset.test), config.eval_batch_size)
    good = _scorer(recipe, "train", len(dataset.train), config.eval_batch_size)

    def batch(data, step, key):
        del key  # whole epochs: their order must not change from step to step
        return train.sample_batch(data["seed"], step, count, config.batch_size, config.drop_last)

    def evaluate(state, data):
        return evaluated(dataset, test(state, data), config.official_pro)

    def finish(state, data, folder: Path) -> dict[str, float]:
        init = functools.partial(train.init, recipe)
        rates = functools.partial(throughput.measure, recipe, batch_sizes=config.throughput_batch_sizes)
        scorers = report.Scorers(test, good, functools.partial(_untrained, init, config), rates)
        return report.finish(state, data, folder, dataset, scorers, config, write_table)

    return Experiment(
        data=_arrays(recipe, variables, dataset, config),
        init=functools.partial(train.init, recipe),
        train_step=functools.partial(train.train_step, recipe),
        batch=batch,
        evaluate=evaluate,
        refresh=bank_building.BankBuilder(
            recipe,
            config.bank,
            used,
            config.eval_batch_size,
            gamma_c=config.gamma_c,
            restarts=config.kmeans_restarts,
            seed=config.seed,
            coefficient=config.ema_coefficient,
        ),
        finish=finish,
    )


def _scorer(recipe: train.Recipe, split: str, count: int, batch_size: int) -> Any:
    """(state, data) -> train.Scores of all images of a split."""
    if not count:
        empty = train.Scores(np.zeros((0, *recipe.size), np.float32), np.zeros(0, np.float32))  # pyright: ignore
        return lambda state, data: empty

    def score(state, data, indices):
        return train.score_split(recipe, state, data, split, indices)

    return PerExample(score, count, batch_size)


def evaluated(dataset: datasets.AnomalyData, scores: Any, with_reference: bool) -> dict[str, float]:
    """Metrics of the test images, or the number of these where none is defined."""
    found = detection_metrics(
        np.asarray(scores.maps), np.asarray(scores.images), dataset.labels, dataset.masks, with_reference
    )
    return found or {"test_images": float(len(dataset.test))}


def _untrained(init: Any, config: ConfigDict, state: TrainState, data: Any) -> TrainState:
    """The state before the first step: fresh parameters with the bank that was made from them."""
    fresh = jax.jit(init, out_shardings=parallel.replicated())(data, rng.stream(config.seed, "init"))
    return state.replace(params=fresh.params)


def _arrays(recipe: train.Recipe, variables: Any, dataset: datasets.AnomalyData, config: ConfigDict) -> dict[str, Any]:
    splits: dict[str, Any] = {"train": dataset.train, "test": dataset.test}
    if recipe.cached:
        splits = {
            name: setup.cache_taps(recipe, variables, images, config.eval_batch_size) if len(images) else images
            for name, images in splits.items()
        }
    return {"backbone": variables, "seed": np.uint32(config.seed), **splits}


def turn_test_images(dataset: datasets.AnomalyData, config: ConfigDict) -> datasets.AnomalyData:
    """RD-MVTec's test set: image and mask turned and cropped by one draw, the same whatever the seed of the run."""

    @jax.jit
    def turned(images, keys):
        return augment.random_rotate_and_crop(images, keys, *config.crop)

    def split(pixels: UInt8[np.ndarray, "n H W c"]) -> UInt8[np.ndarray, "n h w c"]:
        base = rng.stream(config.data_seed, "rotate_and_crop")
        keys = jax.vmap(functools.partial(jax.random.fold_in, base))(jnp.arange(len(pixels)))
        return np.asarray(turned(pixels, keys))

    masks: Bool[np.ndarray, "n h w"] | None = None
    if dataset.masks is not None:
        masks = split(dataset.masks[..., None].astype(np.uint8))[..., 0] > 0
    return dataclasses.replace(dataset, test=split(dataset.test) if len(dataset.test) else dataset.test, masks=masks)
