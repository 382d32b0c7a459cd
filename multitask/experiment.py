"""Wires data, tasks and steps together, from a config: pre-training, then each target task as a phase of its own."""

import functools
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from common import optim, parallel, rng, sampler
from common.config import check
from common.experiment import Experiment, Phase, TrainState
from multitask import diagnostics, handover, relabelling, report, snapshot, tasks, train
from multitask.check import check_config, check_data
from multitask.data import Augmentation, Pool, load_pool
from multitask.metric_regularizer import make_regularizer
from multitask.models import Projection, make_encoder
from multitask.student import Network
from multitask.train import Ensemble, Recipe

TRANSFERS = ("classification", "clustering", "detection")


def phases(config: ConfigDict) -> Sequence[Phase]:
    """Pre-training, unless there are no tasks, and the target tasks; raises UserError on what cannot work."""
    check_config(config)
    for name in config.transfers:
        check(config, "transfers", name in TRANSFERS, f"may hold {', '.join(map(repr, TRANSFERS))} only")
    found = [Phase(handover.PHASE, build, {})] if config.tasks else []
    for name in config.transfers:
        transfer = _transfer(name)
        transfer.check(config)
        found.append(Phase(name, transfer.build, transfer.overrides(config), reported=True))
    check(config, "transfers", bool(found), "must hold a target task where config.tasks is empty")
    return found


def _transfer(name: str) -> ModuleType:
    return importlib.import_module(f"multitask.transfer.{name}")


def build(config: ConfigDict, finished: Mapping[str, TrainState]) -> Experiment:
    """The experiment of pre-training."""
    del finished
    pool = load_pool(config)
    check_data(config, len(pool.images))
    recipe = make_recipe(config, pool)
    count = len(pool.images)
    step = snapshot if recipe.ensemble.mode == "task_snapshot" else train
    features = functools.partial(
        relabelling.pooled_features, recipe.network.encoder, pool.mean, pool.std, count=count,
        batch_size=config.eval_batch_size,
    )  # fmt: skip
    relabelled = any(task.relabel is not None for task in recipe.network.tasks)
    source = config.clustering_task.feature_source
    refresh = functools.partial(relabelling.relabel, recipe.network, features(source=source)) if relabelled else None
    evaluate = make_evaluation(config, recipe, pool)

    def batch(data, step, key):
        # Not `key`, which changes with the step: the order of a pass belongs to the run.
        return sampler.batch_indices(rng.stream(data["seed"], "order"), step, count, config.batch_size)

    def finish(state: TrainState, data: Any, folder: Path) -> dict[str, float]:
        embedded = features(source=config.transfer.source)(state, data)
        return report.finish(state, folder, embedded, pool, config) | evaluate(state, data)

    return Experiment(
        data={"images": pool.images, "labels": pool.labels, "seed": np.uint32(config.seed)},
        init=functools.partial(step.init, recipe),
        train_step=functools.partial(step.train_step, recipe),
        evaluate=evaluate,
        batch=batch,
        refresh=refresh,
        refresh_every=config.clustering_task.refresh_epochs * recipe.steps_per_epoch,
        finish=finish,
    )


def make_evaluation(config: ConfigDict, recipe: Recipe, pool: Pool) -> Any:
    """(state, data) -> what tells whether the encoder leans towards one task, and what the tasks themselves report."""

    def measure(state, data, indices):
        return diagnostics.task_bias(recipe, state, data, indices, rng.stream(data["seed"], "diagnostics"))

    compiled = jax.jit(measure, out_shardings=parallel.replicated())
    indices = np.random.default_rng(0).permutation(len(pool.images))[: config.batch_size].astype(np.int32)

    def evaluate(state: TrainState, data: Any) -> dict[str, float]:
        found = jax.device_get(compiled(state, data, parallel.place(indices, parallel.batched())))
        numbers = {name: float(value) for name, value in found.items()}
        for task in recipe.network.tasks:
            if task.report is not None:
                rows = jax.device_get(state.model_state["tasks"][task.name])
                numbers |= {f"{task.name}_{name}": value for name, value in task.report(rows, pool.labels).items()}
        return numbers

    return evaluate


def make_recipe(config: ConfigDict, pool: Pool) -> Recipe:
    """The fixed part of a step."""
    encoder = make_encoder(config.encoder.name, config.encoder.stem, config.encoder.width)
    context = tasks.Context(config, encoder, pool.mean, pool.std, pool.num_classes)
    made = tuple(tasks.make(name, context) for name in config.tasks)
    projection = Projection(config.projection.dim, config.projection.hidden)
    metric, tte = config.metric, config.tte
    return Recipe(
        network=Network(encoder, made, projection, config.bn_mode, metric.view == "clean"),
        optimizer=optim.make_optimizer(config.optimizer, only_kernels),
        augment=Augmentation(pool.mean, pool.std, config.augment.flip, config.augment.padding),
        regularizer=make_regularizer(metric.kind, metric.temperature, metric.margin, metric.mining, metric.radius),
        ensemble=Ensemble(tte.mode, tte.alpha, tte.bias_correction, tte.batch_stats, tte.order, tte.inner_steps),
        task_weights=tuple(config.task_weights) or (1 / len(made),) * len(made),
        beta_max=metric.beta_max,
        ramp_steps=round(metric.ramp * config.num_steps),
        weighting=config.weighting.kind,
        lambdas=tuple(config.weighting.lambdas),
        dwa_temperature=config.weighting.temperature,
        gradient=config.gradient.kind,
        steps_per_epoch=sampler.steps_per_epoch(len(pool.images), config.batch_size, 1),
    )


def only_kernels(params: Any) -> Any:
    """Which parameters decay: kernels, no biases, norms or loss weights."""
    paths = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: path[-1] == "kernel" for path in paths})
