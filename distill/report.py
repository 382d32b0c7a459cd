"""What a run reports: the test accuracy of the last epoch and of the best, the teacher's, and figures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from common import evaluation as streaming
from common import parallel, plots, rng
from common.checkpoint import read_run
from common.data.classification import means
from common.experiment import TrainState
from common.metrics import ci95_proportion
from distill import train
from distill.method import Variables, frozen
from distill.train import Recipe

DESCRIPTION = "model.json"  # class names and normalisation


def finish(
    folder: Path,
    test: Callable[[TrainState], dict[str, float]],
    state: TrainState,
    recipe: Recipe,
    parts: Any,
    number: int,
) -> dict[str, float]:
    """Test the last epoch (the headline) and the best one by `best_metric` (optimistic with `selection = "test"`).

    Raises UserError if none has been evaluated yet, or the best checkpoint is damaged.
    """
    best_step, saved = read_run(folder, "best")
    saved_parts = {name: _like(getattr(state, name), saved.get(name, {})) for name in ("params", "model_state")}
    last, best = test(state), test(state.replace(**saved_parts))
    if parallel.is_main():
        plots.training_curves(folder / "metrics.jsonl", folder / "figures" / "training.png")
        spec = recipe.augmentation
        description = {"class_names": list(parts.class_names), "mean": spec.mean, "std": spec.std}
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
    return {
        "test_accuracy": last["accuracy"],
        "test_accuracy_ci95": ci95_proportion(last["accuracy"], number),
        "test_loss": last["loss"],
        "test_accuracy_best_epoch": best["accuracy"],
        "best_step": float(best_step),
        "train_images": float(len(parts.labels)),
        "parameters": float(sum(leaf.size for leaf in jax.tree.leaves(_student(state)))),
    }


def _student(state: TrainState) -> Any:
    params = state.params["student"]
    return params.get("student", params)  # of two that teach each other, or of one alone


def _like(tree: Any, saved: Any) -> Any:
    """The saved leaves in the structure of `tree`: a checkpoint does not keep dicts that are empty."""
    return jax.tree.unflatten(jax.tree.structure(tree), jax.tree.leaves(saved))


def of_teacher(recipe: Recipe, data: Any, places: range, batch_size: int) -> dict[str, float]:
    """The frozen teacher's accuracy on the test images."""

    def score(variables, data, indices):
        outputs = train.predict(recipe.teacher, recipe.augmentation, variables, data["held_out_images"][indices])
        return train.score(outputs.logits, data["held_out_labels"][indices])

    run = streaming.PerExample(score, len(data["held_out_labels"]), batch_size)
    return {"teacher_accuracy": means(run(data["teacher"], data, places))["accuracy"]}


def _batches(images: Any, batch_size: int) -> np.ndarray:
    """Places of whole batches of the held-out images, [n, B]; one batch with repetitions where there are too few."""
    count = len(images)
    order = np.random.default_rng(0).permutation(count)
    number = max(1, count // batch_size)
    return np.resize(order, number * batch_size).reshape(number, batch_size)


Evaluation = Callable[[TrainState, Any], dict[str, float]]


def _mean_over_batches(function: Callable[..., dict[str, Any]], batch_size: int) -> Evaluation:
    compiled = jax.jit(function, out_shardings=parallel.replicated())

    def evaluate(state: TrainState, data: Any) -> dict[str, float]:
        found = [compiled(state, data, places) for places in _batches(data["held_out_images"], batch_size)]
        return {name: float(np.mean([jax.device_get(values[name]) for values in found])) for name in found[0]}

    return evaluate


def _teacher_view(recipe: Recipe, data: Any, places: Any) -> Any:
    images = data["held_out_images"][places]
    outputs = train.predict(recipe.teacher, recipe.augmentation, data["teacher"], images)
    return images, frozen(recipe.method.knowledge(outputs))


def module_losses(recipe: Recipe, batch_size: int) -> Evaluation:
    """Mean over batches of held-out images of a state's module loss, in training mode, always with the same noise."""

    def losses(state, data, places):
        _, knowledge = _teacher_view(recipe, data, places)
        modules = Variables(state.params, state.model_state)
        value, _, parts = train.module_loss(recipe, modules, knowledge, rng.stream(0, "modules"))
        return {**parts, "loss": value}

    return _mean_over_batches(losses, batch_size)


def distillation_loss(recipe: Recipe, batch_size: int) -> Evaluation:
    """Mean over batches of held-out images of a state's distillation terms, the student in inference mode."""

    def losses(state, data, places):
        images, knowledge = _teacher_view(recipe, data, places)
        student = Variables(state.params["student"], state.model_state["student"])
        adapters = Variables(state.params["adapters"], state.model_state["adapters"])
        outputs = train.predict(recipe.student, recipe.augmentation, student, images)
        labels = data["held_out_labels"][places]
        terms, _ = recipe.method.loss(data["modules"], adapters, outputs, knowledge, labels)
        return {**terms, "loss": sum(terms.values())}

    return _mean_over_batches(losses, batch_size)


def module_figures(
    recipe: Recipe, state: TrainState, data: Any, places: range, number: int, folder: Path
) -> dict[str, float]:
    """The method's own figures of the trained modules, of `number` test images spread over the classes."""
    if recipe.method.figures is None:
        return {}
    chosen = np.linspace(places.start, places.stop - 1, min(number, len(places))).astype(np.int32)
    _, knowledge = jax.jit(lambda data, places: _teacher_view(recipe, data, places))(data, chosen)
    images, labels = (np.asarray(data[name])[chosen] for name in ("held_out_images", "held_out_labels"))
    modules = Variables(state.params, state.model_state)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    return dict(recipe.method.figures(modules, knowledge, images, labels, folder / "figures"))
