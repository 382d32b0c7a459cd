"""What pre-training leaves: figures of the tasks' losses and gradients, a map of the embedding, the encoder."""

from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from common import parallel, plots, writers
from common.experiment import TrainState
from common.pretrained import save_safetensors
from multitask.data import Pool
from multitask.handover import pretrained_variables

WEIGHTS = "encoder.safetensors"
_CURVES = {
    "task_losses": ("train", "_loss", "loss"),
    "gradient_shares": ("evaluate", "_share", "share of the encoder's gradient"),
    "gradient_cosines": ("evaluate", "cosine_", "cosine of two tasks' gradients"),
    "distances": ("train", "_distance", "squared distance from the ensemble"),
}
_MAPPED_CLASSES, _MAPPED_IMAGES = 7, 700


def finish(
    state: TrainState, folder: Path, features: Float[np.ndarray, "N C"], pool: Pool, config: ConfigDict
) -> dict[str, float]:
    """Figures, and the encoder that the target tasks get as a file of its own."""
    if parallel.is_main():
        plots.training_curves(folder / "metrics.jsonl", folder / "figures" / "training.png")
        for name in _CURVES:
            draw_curves(folder / "metrics.jsonl", folder / "figures" / f"{name}.png", name)
        draw_map(features, pool.labels, folder / "figures" / "embedding.png")
        variables: Any = flatten_dict(pretrained_variables(state, config.transfer.source), sep="/")
        save_safetensors(folder / WEIGHTS, variables, {"encoder": config.encoder.name, "stem": config.encoder.stem})
    return {"feature_rank": effective_rank(features)}


def draw_curves(metrics: Path, out: Path, name: str) -> None:
    """One line per task (or pair of tasks) of one of `_CURVES`; nothing where the run has no such metric."""
    kind, part, label = _CURVES[name]
    lines = [line for line in writers.read(metrics) if line["kind"] == kind]
    found = sorted({key for line in lines for key in line if part in key})
    if not found:
        return
    series = {
        key.removesuffix(part).removeprefix(part).replace("_", " "): [float(line.get(key, np.nan)) for line in lines]
        for key in found
    }
    figure, axes = plots.figure()
    plots.lines(axes, [line["step"] for line in lines], series, "step", label, marker="o" if kind == "evaluate" else "")
    plots.save(figure, out)


def draw_map(features: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"], out: Path) -> None:
    """The first two principal axes of the features, of some classes (of all images where there are no labels)."""
    shown = np.flatnonzero((labels < _MAPPED_CLASSES) & (labels >= 0) if (labels >= 0).any() else labels < 0)
    shown = np.random.default_rng(0).permutation(shown)[:_MAPPED_IMAGES]
    centred = features[shown] - features[shown].mean(0)
    axes_of_space = np.linalg.svd(centred, full_matrices=False)[2][:2]
    places = centred @ axes_of_space.T
    figure, axes = plots.figure(5.0, 5.0)
    for label in np.unique(labels[shown]):
        members = labels[shown] == label
        axes.scatter(*places[members].T, s=8, color=plots.PALETTE[label % len(plots.PALETTE)], label=f"class {label}")
    axes.set_xlabel("first principal axis")
    axes.set_ylabel("second principal axis")
    axes.legend(fontsize=7)
    plots.save(figure, out)


def effective_rank(features: Float[np.ndarray, "N C"]) -> float:
    """exp of the entropy of the covariance's normalised eigenvalues: how many directions the features use [Roy and
    Vetterli 2007]; 1 if all lie on a line."""
    values = np.linalg.svd(features - features.mean(0), compute_uv=False).astype(np.float64) ** 2
    share = values / max(values.sum(), 1e-30)
    share = share[share > 0]
    return float(np.exp(-np.sum(share * np.log(share)))) if len(share) else 1.0
