"""The phases of a run, and how each wires data, networks and steps together."""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from common import evaluation as streaming
from common import optim, parallel, rng, sampler
from common.config import check_choice
from common.data import Dataset, classification
from common.experiment import Experiment, Phase, TrainState
from distill import baselines, methods, models, mutual, report, train
from distill.augmentation import Augmentation
from distill.check import check_config, check_options
from distill.method import Method, Variables
from distill.teachers import network_variables, read_teacher

FILES = {
    entry.name: f"{package.__name__}.{entry.name}"
    for package in (baselines, methods)
    for entry in pkgutil.iter_modules(package.__path__)
}


def phases(config: ConfigDict) -> list[Phase]:
    """Teacher, modules, initialisation and student, as many of them as the config needs.

    Raises:
      UserError: a method or options that do not exist.
    """
    check_choice(config, "phase", ("student", "teacher"))
    method = make_method(config)
    taught = config.method != "none" and not method.mutual
    found = []
    if config.phase == "teacher" or (taught and not config.teacher_checkpoint):
        found.append(_phase(config, "teacher", config.teacher_steps))
    if config.phase == "teacher":
        return found
    if method.module_loss is not None:
        fields = {"optimizer.schedule": "constant", "optimizer.learning_rate": config.module_learning_rate}
        found.append(_phase(config, "modules", config.module_steps, **_loss_is_best(), **fields))
    if config.stages == "two_stage":
        fields = {"optimizer.schedule": "constant"}
        found.append(_phase(config, "initialisation", config.initialisation_steps, **_loss_is_best(), **fields))
    return [*found, _phase(config, "student", config.num_steps)]


def _phase(config: ConfigDict, name: str, steps: int, **fields: Any) -> Phase:
    decays = {max(1, int(share * steps)) for share in config.decay_shares}
    own = {"num_steps": steps, "optimizer.decay_steps": tuple(sorted(decays)), "phase": name}
    if name != "student":
        own |= {"init_from": "", "resume_from": ""}  # these are for the student
    return Phase(name, build, own | fields)


def _loss_is_best() -> dict[str, Any]:
    return {"best_metric": "loss", "best_is_largest": False}


def make_method(config: ConfigDict) -> Method:
    """The method of a config. Raises UserError for a name or options that do not exist."""
    check_choice(config, "method", FILES)
    make = importlib.import_module(FILES[config.method]).make
    check_options(config, make)
    return make(**config.options.to_dict())


def build(config: ConfigDict, finished: Mapping[str, TrainState]) -> Experiment:
    """The experiment of one phase, `config.phase`; raises UserError on what cannot work."""
    dataset = classification.load_dataset(config)
    parts = _Parts.of(config, dataset)
    method = make_method(config)
    check_config(config, dataset.num_classes, len(parts.images))
    recipe = make_recipe(config, method, dataset, len(parts.images))
    data = _data(config, recipe, parts, finished)
    shapes = check_shapes(recipe, parts.images.shape[1:])
    if recipe.cached:
        data["knowledge"] = cache_knowledge(recipe, data, config.eval_batch_size)

    def batch(data, step, key):
        # Not `key`, which changes with the step: the order of a pass belongs to the run.
        order = rng.stream(data["seed"], "order")
        return sampler.batch_indices(order, step, len(parts.images), config.batch_size)

    make = _of_modules if config.phase == "modules" else _of_networks
    functions: dict[str, Any] = make(config, recipe, parts, shapes)
    return Experiment(data=data, batch=batch, **functions)


@dataclass(frozen=True)
class _Parts:
    """What a phase trains on and is evaluated on."""

    images: np.ndarray
    labels: np.ndarray
    held_out_images: np.ndarray
    held_out_labels: np.ndarray
    selection: range
    test: range
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, config: ConfigDict, dataset: Dataset) -> "_Parts":
        """All images for the teacher, `sample_share` of each class for the rest."""
        parts = classification.divide(dataset, config.selection, config.held_out_share)
        share = 1.0 if config.phase == "teacher" else config.sample_share
        kept = classification.few_samples(parts.train, share, config.seed)
        held_out = (parts.held_out_images, parts.held_out_labels, parts.selection, parts.test)
        return cls(kept.images, kept.labels, *held_out, kept.class_names)


def make_recipe(config: ConfigDict, method: Method, dataset: Dataset, num_images: int) -> train.Recipe:
    """The fixed part of a phase's steps on these data."""
    mean, std = classification.moments(config, dataset)
    augmentation = Augmentation(mean, std, **config.augmentation.to_dict())
    return recipe_of_phase(config, method, dataset.num_classes, augmentation, num_images)


def recipe_of_phase(
    config: ConfigDict, method: Method, num_classes: int, augmentation: Augmentation, num_images: int
) -> train.Recipe:
    """The fixed part of the steps of `config.phase`."""
    of_student, of_teacher = (
        models.make_network(*_network_fields(getattr(config, field), num_classes), field=field)
        for field in ("student", "teacher")
    )
    distils = {"teacher": False, "student": config.stages == "joint"}.get(config.phase, True)
    distils = distils and config.method != "none"
    weight = method.cross_entropy_weight if distils else 1.0
    return train.Recipe(
        student=of_teacher if config.phase == "teacher" else of_student,
        teacher=of_teacher,
        method=method,
        # Weight decay is ours to add: beside the gradients of the task, before they are merged with others.
        optimizer=optim.make_optimizer(ConfigDict({**config.optimizer.to_dict(), "weight_decay": 0.0})),
        augmentation=augmentation,
        weight_decay=config.weight_decay,
        decay=config.decay,
        cross_entropy=0.0 if config.phase == "initialisation" else weight,
        distils=distils,
        merge_rule=config.merge_rule,
        num_images=num_images,
        cached=config.cache_teacher and distils,
        phase=train.PHASES.index(config.phase),
    )


def _network_fields(group: ConfigDict, num_classes: int) -> tuple[str, int, float, float, tuple[str, ...]]:
    return group.network, num_classes, group.width, group.dropout, tuple(group.taps)


def _data(
    config: ConfigDict, recipe: train.Recipe, parts: _Parts, finished: Mapping[str, TrainState]
) -> dict[str, Any]:
    data: dict[str, Any] = {
        "images": parts.images,
        "labels": parts.labels,
        "held_out_images": parts.held_out_images,
        "held_out_labels": parts.held_out_labels,
        "seed": np.uint32(config.seed),
        "modules": Variables({}, {}),
    }
    if config.phase != "teacher" and config.method != "none" and not recipe.method.mutual:
        like = jax.eval_shape(lambda: models.init(recipe.teacher, jax.random.key(0), parts.images.shape[1:]))
        if config.teacher_checkpoint:
            data["teacher"] = read_teacher(config.teacher_checkpoint, like)
        else:
            data["teacher"] = network_variables(finished["teacher"])
    if "modules" in finished and config.phase != "modules":
        data["modules"] = Variables(finished["modules"].params, finished["modules"].model_state)
    if "initialisation" in finished and config.phase == "student":
        data["start"] = network_variables(finished["initialisation"])
    return data


def check_shapes(recipe: train.Recipe, image_shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Shapes of the student's outputs and the teacher's knowledge; raises UserError if the method cannot pair them."""
    student = models.output_shapes(recipe.student, image_shape)
    knowledge = jax.eval_shape(recipe.method.knowledge, models.output_shapes(recipe.teacher, image_shape))
    if recipe.distils:
        key = jax.random.key(0)
        jax.eval_shape(lambda key: recipe.method.init_modules(key, knowledge), key)
        jax.eval_shape(lambda key: recipe.method.init_adapters(key, student, knowledge), key)
    return student, knowledge


def cache_knowledge(recipe: train.Recipe, data: Any, batch_size: int) -> Any:
    """What the teacher knows about every training image, which nothing changes."""

    def knowledge(variables, images, indices):
        outputs = train.predict(recipe.teacher, recipe.augmentation, variables, images[indices])
        return recipe.method.knowledge(outputs)

    placed = parallel.place_data({"teacher": data["teacher"], "images": data["images"]})
    run = streaming.PerExample(knowledge, len(data["images"]), batch_size)
    return run(placed["teacher"], placed["images"])


Functions = dict[str, Callable[..., Any]]


def _of_networks(config: ConfigDict, recipe: train.Recipe, parts: _Parts, shapes: tuple[Any, Any]) -> Functions:
    both = recipe.method.mutual and config.phase != "teacher"
    steps: Any = mutual if both else train
    count = len(parts.held_out_labels)
    run = streaming.PerExample(functools.partial(train.evaluate, recipe), count, config.eval_batch_size)

    def score(state: TrainState, data: Any, places: range) -> dict[str, float]:
        state = mutual.of_side(state, "student") if both else state
        return classification.means(run(state, data, places))

    def evaluate(state, data):
        return score(state, data, parts.selection)

    # For the initialisation, where the last layer is not trained: on batches as in training.
    distance = report.distillation_loss(recipe, config.batch_size)

    def finish(state: TrainState, data: Any, folder: Path) -> dict[str, float]:
        if config.phase == "initialisation":
            return {}
        number = len(parts.test)
        found = report.finish(folder, lambda state: score(state, data, parts.test), state, recipe, parts, number)
        if "teacher" in data:
            found |= report.of_teacher(recipe, data, parts.test, config.eval_batch_size)
        return found

    return {
        "init": functools.partial(steps.init, recipe, parts.images.shape[1:], shapes),
        "train_step": functools.partial(steps.train_step, recipe),
        "evaluate": distance if config.phase == "initialisation" else evaluate,
        "finish": finish,
    }


def _of_modules(config: ConfigDict, recipe: train.Recipe, parts: _Parts, shapes: tuple[Any, Any]) -> Functions:
    def finish(state: TrainState, data: Any, folder: Path) -> dict[str, float]:
        return report.module_figures(recipe, state, data, parts.test, config.figure_images, folder)

    return {
        "init": functools.partial(train.init_modules, recipe, shapes),
        "train_step": functools.partial(train.module_step, recipe),
        "evaluate": report.module_losses(recipe, config.batch_size),
        "finish": finish,
    }
