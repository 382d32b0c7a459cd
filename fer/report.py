"""What a run reports: agreement on people never seen and on those trained on, the gap between them, and figures."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from common import parallel, plots
from common.checkpoint import read_run
from common.data.faces import CATEGORIES, FaceData, Faces
from common.experiment import TrainState
from fer import figures, metrics, train

DESCRIPTION = "model.json"  # normalisation and what was trained on, for predictions
Outputs = Mapping[str, Mapping[str, np.ndarray]]


def scores(config: ConfigDict, predicted: np.ndarray, split: Faces) -> dict[str, float]:
    """All numbers of one split. A correlation without variance counts 0, as constant predictions deserve."""
    if config.task == "category":
        accuracy = np.mean(np.argmax(predicted, axis=1) == split.category)
        return {"accuracy": float(accuracy)}
    labels = split.valence_arousal
    table = metrics.named(metrics.standard(predicted, labels, undefined=0.0))
    table |= metrics.named({"identity_bias": metrics.identity_bias(predicted, labels, split.identity)})
    if config.official_metrics:
        official = metrics.official(predicted, labels, config.eval_batch_size, undefined=0.0)
        table |= metrics.named(official, "official_")
    return table


def finish(
    config: ConfigDict,
    state: TrainState,
    folder: Path,
    outputs_of: Callable[[Any], Outputs],
    untrained: TrainState,
    recipe: train.Recipe,
    data: FaceData,
    held_out: Mapping[str, Faces],
) -> dict[str, float]:
    """Test the last step (the headline) and the best one by `best_metric` on the validation people.

    Raises UserError if none has been evaluated yet, or the best checkpoint is damaged.
    """
    best_step, saved = read_run(folder, "best")
    best_state = state.replace(params=saved["params"], model_state=saved["model_state"])
    before, last, best = outputs_of(untrained), outputs_of(state), outputs_of(best_state)
    results = {"best_step": float(best_step), "parameters": float(train.count_parameters(state.params))}
    headline = "accuracy" if config.task == "category" else "ccc"
    for name, split in held_out.items():
        of_split = scores(config, last[name]["scores"], split)
        results |= {f"{name}_{metric}": value for metric, value in of_split.items()}
    results[f"test_{headline}_best_step"] = scores(config, best["test"]["scores"], held_out["test"])[headline]
    if "seen" in held_out:
        results["identity_gap"] = results[f"seen_{headline}"] - results[f"test_{headline}"]
    if parallel.is_main():
        plots.training_curves(folder / "metrics.jsonl", folder / "figures" / "training.png")
        figures.draw_all(config, folder / "figures", recipe, state, data, held_out, before, last)
        (folder / DESCRIPTION).write_text(json.dumps(describe(config, recipe, data), indent=1) + "\n")
    return results


def describe(config: ConfigDict, recipe: train.Recipe, data: FaceData) -> dict[str, Any]:
    """What a prediction needs beside the config and the parameters."""
    spec = recipe.augmentation
    names = CATEGORIES[: config.num_classes] if config.task == "category" else ()
    return {
        "mean": spec.mean,
        "std": spec.std,
        "categories": names,
        "dataset": data.name,
        "synthetic": data.synthetic,
    }
