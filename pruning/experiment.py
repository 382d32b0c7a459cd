"""Wires data, network and steps together, from a config, one function for each phase of a run:

dense     train the whole network, unless `config.dense` says where there is one
prepare   the official epoch of cross entropy on D_sub before the search
search    until the FLOPs fit
bank      logits of the teachers for every training image
finetune  the slim network, towards the bank; then the report
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from common import evaluation as streaming
from common import optim, parallel
from common.config import check
from common.data import classification
from common.experiment import Experiment, Phase, TrainState
from pruning import memory_bank, one_shot, report, search, setup, slim, splits, train
from pruning.candidates import whole
from pruning.check import check_config
from pruning.graph import Graph, narrow
from pruning.history import select_teachers

NEVER = 1 << 30


def phases(config: ConfigDict) -> list[Phase]:
    """The phases of a run; raises UserError on what cannot work."""
    check_config(config)
    setting = setup.load(config)
    plan = setup.search_of(config, setting.graph)
    search.check_target(plan)
    images = len(setting.dataset.splits["train"].labels)
    found = []

    def add(name: str, build: Any, fields: dict[str, Any]) -> None:
        found.append(Phase(name, functools.partial(build, setting), fields))

    if not config.dense:
        add("dense", build_dense, _training(config, "train", images))
    if config.prepare.epochs:
        add("prepare", build_prepare, _training(config, "prepare", len(_preparation(config, setting).labels)))
    once = {"log_every_steps": 1, "eval_every_steps": NEVER, "save_every_steps": 1}
    greedy = config.search.method == "greedy"
    add("search", build_search, {"num_steps": search.most_steps(plan.graph, plan.settings) if greedy else 1, **once})
    if config.finetune_teacher != "none":
        add("bank", build_bank, {"num_steps": 1, **once})
    add("finetune", build_finetune, _training(config, "finetune", images))
    return found


def _training(config: ConfigDict, group: str, images: int) -> dict[str, Any]:
    """The loop's and the optimiser's fields of a phase that trains: they follow from its own group of fields."""
    own = getattr(config, group)
    per_epoch = images // own.batch_size
    check(config, f"{group}.batch_size", per_epoch >= 1, f"must be at most {images}, the images of an epoch")
    every = -(-own.epochs // config.evaluations) * per_epoch
    decays = {int(part * own.epochs) * per_epoch for part in own.decay_at}  # whole epochs; none in a very short run
    return {
        "num_steps": own.epochs * per_epoch,
        "batch_size": own.batch_size,
        "eval_every_steps": every,
        "save_every_steps": every,
        "optimizer.learning_rate": own.learning_rate,
        "optimizer.weight_decay": own.weight_decay,
        "optimizer.decay_factor": own.decay_factor,
        "optimizer.decay_steps": tuple(sorted(decays - {0})),
    }


def build_dense(setting: setup.Setting, config: ConfigDict, finished: Mapping[str, TrainState]) -> Experiment:
    """Training of the whole network with plain cross entropy."""
    del finished
    print(setting.dataset.summary())
    recipe = train.Recipe(setting.graph, optim.make_optimizer(config.optimizer), setting.augmentation)
    return _trained(config, setting, recipe, setting.dataset.splits["train"])


def _preparation(config: ConfigDict, setting: setup.Setting) -> Any:
    """D_sub."""
    images = setting.dataset.splits["train"]
    per_class = config.prepare.images_per_class
    return classification.take(images, splits.preparation_images(images.labels, images.num_classes, per_class))


def build_prepare(setting: setup.Setting, config: ConfigDict, finished: Mapping[str, TrainState]) -> Experiment:
    """One epoch on D_sub, without augmentation or masks, so moving statistics do move."""
    recipe = train.Recipe(
        setting.graph,
        optim.make_optimizer(config.optimizer),
        setting.augmentation,
        augmented=False,
        loss_scale=config.prepare.loss_scale,
    )
    start = setup.dense_variables(config, setting.graph, finished)
    return _trained(config, setting, recipe, _preparation(config, setting), start)


def _trained(
    config: ConfigDict, setting: setup.Setting, recipe: train.Recipe, images: Any, start: Any = None, bank: Any = None
) -> Experiment:
    """An experiment of `train.train_step` on a split, evaluated on the test images."""
    test = setting.dataset.splits["test"]
    count = len(images.labels)

    def host_batch(seed: int, step: int) -> dict[str, np.ndarray]:
        indices = setup.batch_indices(seed, step, count, config.batch_size)
        return {"index": indices} if bank is None else {"index": indices, "bank": np.asarray(bank[indices])}

    data = {
        "images": images.images,
        "labels": images.labels,
        "test_images": test.images,
        "test_labels": test.labels,
    }
    if start is not None:
        data["start"] = start
    return Experiment(
        data=data,
        init=functools.partial(train.init, recipe, test.images.shape[1:]),
        train_step=functools.partial(train.train_step, recipe),
        evaluate=_evaluation(config, setting, recipe.graph),
        host_batch=host_batch,
    )


def _evaluation(config: ConfigDict, setting: setup.Setting, graph: Graph) -> report.Evaluate:
    """Of a state of the network `graph`, on the test images."""
    score = functools.partial(train.evaluate, graph, setting.augmentation)
    run = streaming.PerExample(score, len(setting.dataset.splits["test"].labels), config.eval_batch_size)
    return lambda state, data: classification.means(run(state, data))


def build_search(setting: setup.Setting, config: ConfigDict, finished: Mapping[str, TrainState]) -> Experiment:
    """The search; its step decides on the host, around compiled pieces."""
    start = "prepare" if "prepare" in finished else "dense"
    variables = setup.variables_of(finished[start]) if start in finished else None
    variables = variables or setup.dense_variables(config, setting.graph, finished)
    images, labels = setup.validation(config, setting.dataset)
    plan = setup.search_of(config, setting.graph)

    def init(data, key):
        del key
        blank = search.blank(setting.graph, len(labels), plan.settings)
        return TrainState(jnp.zeros((), jnp.int32), data["variables"]["params"], {}, _model_state(data, blank))

    def refresh(state, data, step, key):
        del step, key
        progress = search.begin(plan, progress_of(state), data["variables"], data["images"], data["labels"])
        return state.replace(model_state=_model_state(data, progress))

    def step(state: TrainState, data: Any, batch: Any, key: Any) -> tuple[TrainState, Any]:
        del batch
        arguments = (progress_of(state), data["variables"], data["images"], np.asarray(data["labels"]), key)
        if config.search.method == "greedy":
            progress, decision = search.greedy_step(plan, *arguments)
            evaluated = len(decision.candidates)
        else:
            progress, evaluated = one_shot.prune(plan, config.search.method, *arguments), 1
        loss, score, accuracy = progress.history[int(progress.length) - 1]
        kept = search.ratio(plan, progress.keeps)
        one = np.float32(1)
        metrics = {"loss": loss, "score": score, "accuracy": accuracy, "flops_kept": kept, "candidates": evaluated}
        state = state.replace(model_state=_model_state(data, progress))
        return state, {name: (np.float32(value), one) for name, value in metrics.items()}

    return Experiment(
        data={"variables": variables, "images": setting.normalise(images), "labels": labels},
        init=init,
        train_step=step,
        evaluate=lambda state, data: _last_row(plan, progress_of(state)),
        batch=lambda data, step, key: step,
        host_step=True,
        refresh=refresh,
        done=lambda state: search.ratio(plan, progress_of(state).keeps) <= config.search.target,
        finish=lambda state, data, folder: report.finish_search(plan, progress_of(state), folder),
    )


def _model_state(data: Any, progress: search.Progress) -> dict[str, Any]:
    return {"batch_stats": data["variables"]["batch_stats"], "search": progress._asdict()}


def progress_of(state: TrainState) -> search.Progress:
    """The search's progress in a state, in memory or as read from disk."""
    stored = state.model_state["search"]
    return search.Progress(**{name: np.asarray(stored[name]) for name in search.Progress._fields})


def _last_row(plan: search.Search, progress: search.Progress) -> dict[str, float]:
    loss, score, accuracy = progress.history[max(int(progress.length) - 1, 0)]
    kept = search.ratio(plan, progress.keeps)
    return {"loss": float(loss), "score": float(score), "accuracy": float(accuracy), "flops_kept": kept}


def build_bank(setting: setup.Setting, config: ConfigDict, finished: Mapping[str, TrainState]) -> Experiment:
    """The memory bank, written at the phase's end; its only step does nothing."""
    state = finished["search"]
    progress = progress_of(state)
    before = int(progress.length) - 1  # the last network is the slim one
    chosen = select_teachers(progress.history[:before, 0], config.bank.teachers)
    teachers = [
        search.masks_of(setting.graph, progress.history_ranks[row], progress.history_keeps[row]) for row in chosen
    ]
    images = setting.dataset.splits["train"].images

    def step(state: TrainState, data: Any, batch: Any, key: Any) -> tuple[TrainState, Any]:
        del data, batch, key
        return state, {"teachers": (np.float32(len(teachers)), np.float32(1))}

    def finish(state: TrainState, data: Any, folder: Path) -> dict[str, float]:
        def logits(masks, batch):
            return whole(setting.graph, data["variables"], batch, masks)

        if parallel.is_main():
            memory_bank.build(
                folder / memory_bank.FILE,
                logits,
                teachers,
                lambda: setup.batches(setting, images, config.bank.batch_size),
                (len(images), setting.graph.num_classes),
                config.bank.dtype,
            )
        parallel.barrier("memory bank")
        return {f"teacher{k}_loss": float(progress.history[row, 0]) for k, row in enumerate(chosen)}

    return Experiment(
        data={"variables": setup.variables_of(state)},
        init=lambda data, key: TrainState(jnp.zeros((), jnp.int32), {}, {}, {}),
        train_step=step,
        evaluate=lambda state, data: {"teachers": float(len(teachers))},
        batch=lambda data, step, key: step,
        host_step=True,
        finish=finish,
    )


def build_finetune(setting: setup.Setting, config: ConfigDict, finished: Mapping[str, TrainState]) -> Experiment:
    """Fine-tuning of the slim network, from recalibrated statistics."""
    found, images = finished["search"], setting.dataset.splits["train"]
    progress = progress_of(found)
    keeps = {gate.name: int(keep) for gate, keep in zip(setting.graph.gates, progress.keeps, strict=True)}
    keeps = slim.round_widths(setting.graph, config.image_size, keeps, config.slim.round_to, config.search.target)
    kept = slim.keep_indices(setting.graph, search.split(setting.graph, progress.ranks), keeps)
    narrowed = narrow(setting.graph, slim.widths(kept))
    start = _slim_variables(setting, config, found, kept)
    own, teacher = config.finetune, config.finetune_teacher
    bank = None
    if teacher != "none":
        path = finished.folder / "bank" / memory_bank.FILE  # pyright: ignore[reportAttributeAccessIssue]
        bank = memory_bank.read(path, (len(images.labels), setting.graph.num_classes))
        bank = bank[:, :, :1] if teacher == "single" else bank
    recipe = train.Recipe(
        narrowed,
        optim.make_optimizer(config.optimizer),
        setting.augmentation,
        temperature=0.0 if bank is None else own.temperature,
        teacher_filter="all" if teacher == "single" else own.teacher_filter,
    )
    dense = setup.dense_variables(config, setting.graph, finished)
    tuning = _trained(config, setting, recipe, images, start, bank)
    evaluate_dense = _evaluation(config, setting, setting.graph)
    before = report.Before(setting, progress, kept, dense, start, evaluate_dense, tuning.evaluate)

    def finish(state: TrainState, data: Any, folder: Path) -> dict[str, float]:
        return report.finish(state, data, folder, before, config)

    return dataclasses.replace(tuning, finish=finish)


def _slim_variables(setting: setup.Setting, config: ConfigDict, found: TrainState, kept: slim.Kept) -> dict[str, Any]:
    """The slim network as it is cut out, with statistics estimated anew on training images."""
    own, images = config.slim, setting.dataset.splits["train"].images
    narrowed = narrow(setting.graph, slim.widths(kept))
    params, stats = slim.slice_variables(setting.graph, found.params, found.model_state["batch_stats"], kept)
    count = min(own.batches, len(images) // own.batch_size) * own.batch_size
    some = images[np.random.default_rng(config.seed).permutation(len(images))[:count]]
    stats = slim.recalibrate_bn(narrowed, params, stats, setup.batches(setting, some, own.batch_size))
    return {"params": params, "batch_stats": stats}
