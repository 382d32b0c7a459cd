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
from common import optim, parallel, rng, workdir
from common.config import check
from common.experiment import Experiment, TrainState
from fewshot import analysis, analysis_report, data, report, tapl, train, weights
from fewshot.adaptation import InnerLoop
from fewshot.checks import check_config
from fewshot.convolution import CONVOLUTIONS, Convolution, choose
from fewshot.label_propagation import Propagation
from fewshot.models import Conv4
from fewshot.resnet12 import ResNet12


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
        return train.init(evaluating, loaded.image_shape, arrays, key)

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
        read_weights=weights.read,
    )


def analyse(config: ConfigDict, folder: Path) -> None:
    """The mode `analyse`: measure what the inner loop of a finished run does, and write it to its folder `analysis`.

    The best checkpoint by validation is taken, and the first `eval_analysis_episodes` test episodes.
    """
    check_config(config)
    has_loop = config.transduction != "propagation"
    check(config, "transduction", has_loop, "must be 'off' or 'tapl' for --mode=analyse, which follows the inner loop")
    workdir.check_config(folder, config, data.EVALUATION_FIELDS)
    step, params = analysis_report.best_parameters(folder)
    loaded = data.load(config)
    recipe = make_recipe(config, loaded.dataset, first_order=True, training=False)
    count = min(config.eval_analysis_episodes or config.test_episodes, config.test_episodes)
    examples = range(loaded.test.start, loaded.test.start + count)
    run_episodes = streaming.PerExample(
        functools.partial(analysis.run_episodes, recipe),
        examples.stop,
        min(config.episodes_per_batch, count),
        loaded.fetch,
    )
    state = TrainState(jnp.asarray(step, jnp.int32), params, {}, {})
    values = run_episodes(state, parallel.place_data(loaded.arrays), examples)
    name = config.eval_dataset or config.dataset
    facts = {
        "checkpoint": step,
        "dataset": name,
        "episodes": count,
        "inner_steps": config.inner_steps,
        "transductive": config.transduction != "off",
    }
    if parallel.is_main():
        summary = analysis.summarize(values)
        place = analysis_report.write(folder, config, facts, summary)
        print(f"Analysis of {folder}, step {step} ({report.titled(config)}), written to {place}:")
        analysis_report.show(summary, config.inner_steps)


def make_recipe(config: ConfigDict, dataset: datasets.Dataset, *, first_order: bool, training: bool) -> train.Recipe:
    """The fixed part of a step; evaluation takes the forms that compile fast and never takes outer gradients."""
    plan = choose(jax.default_backend(), config.num_steps if training else 0)
    convolution = plan.convolution if config.convolution == "auto" else config.convolution
    scan = plan.scan if config.inner_loop == "auto" else config.inner_loop == "scan"
    task_loop = plan.task_loop if config.task_loop == "auto" else config.task_loop
    normalized = config.normalize == "dataset"
    return train.Recipe(
        network=make_network(config, CONVOLUTIONS[convolution]),
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
            remat=training and (config.remat == "on" or (config.remat == "auto" and config.network == "resnet12")),
            transduction=config.transduction,
            propagation=Propagation(**config.propagation),
            tapl=tapl.Tapl(**config.tapl),
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


def make_network(config: ConfigDict, conv: Convolution) -> Conv4 | ResNet12:
    """The network of a config, with its 3x3 convolutions in the form `conv`."""
    shared: dict[str, Any] = {
        "num_classes": config.ways,
        "filters": config.filters,
        "norm_steps": config.inner_steps if config.per_step_norm else 0,
        "dtype": jnp.dtype(config.dtype),
        "conv": conv,
    }
    if config.network == "resnet12":
        return ResNet12(**shared)
    return Conv4(norm=config.norm, pooling=config.pooling, **shared)


def make_train_steps(config: ConfigDict, dataset: datasets.Dataset) -> dict[int, functools.partial]:
    """{first step: train step}: one, or two where first-order warm-up is on."""
    warm_up = config.first_order_steps if config.second_order else config.num_steps
    starts = {0: warm_up > 0} if warm_up in (0, config.num_steps) else {0: True, warm_up: False}
    return {
        start: functools.partial(train.train_step, make_recipe(config, dataset, first_order=first_order, training=True))
        for start, first_order in starts.items()
    }
