"""What a run reports: the test accuracy of the last epoch, the best epoch's beside it, cost, curves, class names."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from common import parallel, plots
from common.checkpoint import Checkpoints
from common.data import Dataset
from common.errors import UserError
from common.experiment import TrainState
from common.metrics import ci95_proportion
from vit_small import cost
from vit_small.train import Recipe

DESCRIPTION = "model.json"  # class names and normalisation, for predictions
PerImage = Mapping[str, np.ndarray]


def means(values: PerImage) -> dict[str, float]:
    """Exact means over all images."""
    return {name: float(np.mean(array, dtype=np.float64)) for name, array in values.items()}


def finish(
    state: TrainState,
    folder: Path,
    test: Callable[[TrainState], PerImage],
    recipe: Recipe,
    dataset: Dataset,
    class_names: Sequence[str],
    config: ConfigDict,
) -> dict[str, float]:
    """Test the last epoch (the headline) and the best one by `best_metric` (what the official code reports).

    With `selection = "test"`, the official way, the best epoch is chosen on the test images themselves.
    Raises UserError if none has been evaluated yet, or the best checkpoint is damaged.
    """
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    try:
        steps = checkpoints.best_steps(1)
        params = checkpoints.restore_as_saved(steps[0])["params"] if steps else None
    finally:
        checkpoints.close()
    if params is None:
        raise UserError(f"No checkpoint in {folder} has been evaluated yet; train on with the same command.")
    last, best = means(test(state)), means(test(state.replace(params=params)))
    image = cost.Image(config.image_size, config.channels)
    if parallel.is_main():
        plots.training_curves(folder / "metrics.jsonl", folder / "figures" / "training.png")
        spec = recipe.augmentation
        description = {"class_names": list(class_names), "mean": spec.mean, "std": spec.std, "dataset": dataset.name}
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
    return {
        "test_accuracy": last["accuracy"],
        "test_accuracy_ci95": ci95_proportion(last["accuracy"], len(dataset.splits["test"].labels)),
        "test_loss": last["loss"],
        "test_accuracy_best_epoch": best["accuracy"],
        "best_step": float(steps[0]),
        "parameters": float(cost.parameters(recipe.model, image)),
        "million_macs": cost.macs(recipe.model, image) / 1e6,
    }
