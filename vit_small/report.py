"""What a run reports: the test accuracy of the last epoch, the best epoch's beside it, cost, curves, class names."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from common import parallel, plots
from common.checkpoint import read_run
from common.data import Dataset
from common.data.classification import means
from common.experiment import TrainState
from common.metrics import ci95_proportion
from vit_small import cost
from vit_small.train import Recipe

DESCRIPTION = "model.json"  # class names and normalisation, for predictions
PerImage = Mapping[str, np.ndarray]


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
    best_step, saved = read_run(folder, "best")
    last, best = means(test(state)), means(test(state.replace(params=saved["params"])))
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
        "best_step": float(best_step),
        "parameters": float(cost.parameters(recipe.model, image)),
        "million_macs": cost.macs(recipe.model, image) / 1e6,
    }
