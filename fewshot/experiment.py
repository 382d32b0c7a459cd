"""Wires data, network and steps together, from a config."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from common import data as datasets
from common import evaluation as streaming
from common import optim, rng
from common.config import check, check_choice, check_positive
from common.experiment import Experiment, TrainState
from fewshot import data, report, train
from fewshot.adaptation import InnerLoop
from fewshot.convolution import CONVOLUTIONS, TASK_LOOPS, choose
from fewshot.evaluation import AVERAGES
from fewshot.maml import ADAPTED
from fewshot.models import Conv4


def build(config: ConfigDict, finished: Mapping[str, TrainState]) -> Experiment:
    """The experiment of a config of this folder; raises UserError on what cannot work."""
    check_config(config)
    loaded = data.load(config)
    steps = make_train_steps(config, loaded.dataset)
    evaluating = make_recipe(config, loaded.dataset, first_order=True, training=False)
    run_episodes = streaming.PerExample(
        functools.partial(train.run_episodes, evaluating),
        len(loaded.validation) + len(loaded.test),
        config.episodes_per_batch,
        loaded.fetch,
    )
    model_seed = config.seed if config.model_seed < 0 else config.model_seed

    def init(arrays, key):
        key = rng.stream(model_seed, "model")
        return train.init(next(iter(steps.values())).args[0], loaded.image_shape, arrays, key)

    def evaluate(state, arrays):
        if config.eval_dataset:  # selection and its numbers belong to the data set of the training
            return {}
        return report.validation_metrics(run_episodes(state, arrays, loaded.validation), config)

    def finish(state: TrainState, arrays: Any, folder: Path) -> dict[str, float]:
        test = functools.partial(run_episodes, examples=loaded.test)
        return report.finish(state, arrays, folder, test, config)

    return Experiment(
        data=loaded.arrays,
        init=init,
        train_step=steps,
        evaluate=evaluate,
        finish=finish,
        batch=loaded.batch,
        host_batch=loaded.host_batch,
        batch_field="tasks_per_step",
    )


def check_config(config: ConfigDict) -> None:
    """Raise UserError for values that no field can have, before anything slow is done."""
    check_positive(config, "num_steps", "inner_steps", "tasks_per_step", "filters", "steps_per_epoch", "context_size")
    check_positive(config, "inner_learning_rate", "episodes_per_batch", "keep_best")
    for field in ("eval_episodes", "test_episodes"):
        check(config, field, getattr(config, field) >= 2, "must be at least 2 for an interval over episodes")
    for field in ("first_order_steps", "multi_step_loss_epochs", "context_learning_rate"):
        check(config, field, getattr(config, field) >= 0, "must not be negative")
    check(config, "seed", 0 <= config.seed < 2**32, "must lie in 0..4294967295")
    check(config, "model_seed", config.model_seed < 2**32, "must be below 4294967296, or negative to use config.seed")
    check_choice(config, "method", ("maml", "cxgrad"))
    check_choice(config, "adapted", ADAPTED)
    check_choice(config, "sampler", ("device", "official"))
    check_choice(config, "images_on", ("auto", "device", "host"))
    data.check_evaluation(config)
    check_choice(config, "norm", ("batch", "layer"))
    check_choice(config, "normalize", ("none", "dataset"))
    check_choice(config, "dtype", ("float32", "bfloat16"))
    check_choice(config, "batch_norm", ("batch", "support_stats"))
    check_choice(config, "context", ("learned", "off"))
    check_choice(config, "scaling", ("learned", "fixed_one"))
    check_choice(config, "ensemble", AVERAGES)
    check_choice(config, "best_metric", report.VALIDATION_METRICS)
    check_choice(config, "convolution", ("auto", *CONVOLUTIONS))
    check_choice(config, "task_loop", ("auto", *TASK_LOOPS))
    check_choice(config, "inner_loop", ("auto", "scan", "unroll"))
    no_layers_left = config.method == "cxgrad" and config.adapted == "head"
    check(
        config,
        "adapted",
        not no_layers_left,
        "CxGrad scales convolution layers, so they must adapt: 'all' or 'backbone'",
    )
    per_step_of_layer_norm = config.per_step_norm and config.norm != "batch"
    check(config, "norm", not per_step_of_layer_norm, "must be 'batch' with config.per_step_norm")
    smallest = 16 if config.pooling else 1
    check(config, "image_size", config.image_size >= smallest, f"must be at least {smallest} for four halvings")


def make_recipe(config: ConfigDict, dataset: datasets.Dataset, *, first_order: bool, training: bool) -> train.Recipe:
    """The fixed part of a step; evaluation takes the forms that compile fast and never takes outer gradients."""
    plan = choose(jax.default_backend(), config.num_steps if training else 0)
    convolution = plan.convolution if config.convolution == "auto" else config.convolution
    scan = plan.scan if config.inner_loop == "auto" else config.inner_loop == "scan"
    task_loop = plan.task_loop if config.task_loop == "auto" else config.task_loop
    normalized = config.normalize == "dataset"
    return train.Recipe(
        network=Conv4(
            num_classes=config.ways,
            filters=config.filters,
            norm=config.norm,
            norm_steps=config.inner_steps if config.per_step_norm else 0,
            pooling=config.pooling,
            dtype=jnp.dtype(config.dtype),
            conv=CONVOLUTIONS[convolution],
        ),
        inner=InnerLoop(
            method=config.method,
            num_steps=config.inner_steps,
            learning_rate=config.inner_learning_rate,
            adapted=config.adapted,
            first_order=first_order,
            context=config.context,
            scaling=config.scaling,
            context_size=config.context_size,
            context_rate=config.context_learning_rate,
            batch_norm=config.batch_norm,
            scan=scan,
            remat=config.remat and training,
        ),
        optimizer=optim.make_optimizer(config.optimizer),
        shots=config.shots,
        mean=dataset.mean if normalized else None,
        std=dataset.std if normalized else None,
        learned_rates=config.learned_inner_rates,
        msl_epochs=config.multi_step_loss_epochs,
        steps_per_epoch=config.steps_per_epoch,
        task_loop=task_loop,
    )


def make_train_steps(config: ConfigDict, dataset: datasets.Dataset) -> dict[int, functools.partial]:
    """{first step: train step}: one, or two where first-order warm-up is on."""
    warm_up = config.first_order_steps if config.second_order else config.num_steps
    starts = {0: warm_up > 0} if warm_up in (0, config.num_steps) else {0: True, warm_up: False}
    return {
        start: functools.partial(train.train_step, make_recipe(config, dataset, first_order=first_order, training=True))
        for start, first_order in starts.items()
    }
