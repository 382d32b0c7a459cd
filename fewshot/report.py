"""What a run reports: validation numbers on the way; at the end the test accuracy of the ensemble of the best
checkpoints and of the single best one, and the figures."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from common import parallel, plots, workdir, writers
from common.checkpoint import Checkpoints
from common.errors import UserError
from common.experiment import TrainState
from fewshot.data import EVALUATION_FIELDS
from fewshot.evaluation import accuracy_report, ensemble_logits
from fewshot.train import EpisodeOutput, episode_labels

Test = Callable[[TrainState, Any], EpisodeOutput]  # of the test episodes
VALIDATION_METRICS = ("accuracy", "accuracy_ci95", "loss")


def validation_metrics(output: EpisodeOutput, config: ConfigDict) -> dict[str, float]:
    """Accuracy with its per-episode interval, the query loss, and the mark of a transductive run."""
    scores = _scores(np.asarray(output.logits), config)
    return {
        "accuracy": scores["accuracy"],
        "accuracy_ci95": scores["ci95_per_episode"],
        "loss": float(np.mean(output.query_loss, dtype=np.float64)),
        **_mark(config),
    }


def finish(state: TrainState, data: Any, folder: Path, test: Test, config: ConfigDict) -> dict[str, float]:
    """Test the `keep_best` best checkpoints by validation accuracy (official protocol), draw the figures.

    Raises UserError if none has been evaluated yet, or one of them is damaged.
    """
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    try:
        steps = checkpoints.best_steps(config.keep_best)
        outputs = [test(state.replace(params=checkpoints.restore_as_saved(step)["params"]), data) for step in steps]
    finally:
        checkpoints.close()
    if not steps:
        raise UserError(
            f"No checkpoint in {folder} has been evaluated yet; train on with the same command and --mode=train."
        )
    logits = np.stack([output.logits for output in outputs])
    results = {
        **_named("test_ensemble", _scores(np.asarray(ensemble_logits(logits, config.ensemble)), config)),
        **_named("test_best_single", _scores(logits[0], config)),
        "ensemble_size": float(len(steps)),
        "best_step": float(steps[0]),
        **_mark(config),
    }
    for name, values in outputs[0].pseudo_labels.items():
        for place, step in (("first", 0), ("last", -1)):
            results[f"test_best_single_{name}_{place}"] = float(np.mean(values[:, step], dtype=np.float64))
    if parallel.is_main():
        _figures(folder, outputs[0], config)
    return results


def titled(config: ConfigDict) -> str:
    """The run as figures name it: config and data set, and whether query images take part in the adaptation."""
    marked = f"{config.name} (transductive)" if config.transduction != "off" else config.name
    return f"{marked} on {config.eval_dataset or config.dataset}"


def _mark(config: ConfigDict) -> dict[str, float]:
    """Beside every accuracy: not to be compared with methods that adapt to the support images alone."""
    return {"transductive": 1.0} if config.transduction != "off" else {}


def _scores(logits: np.ndarray, config: ConfigDict) -> dict[str, float]:
    return accuracy_report(logits, episode_labels(len(logits), config.ways, config.queries))


def _named(prefix: str, scores: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in scores.items()}


def _figures(folder: Path, output: EpisodeOutput, config: ConfigDict) -> None:
    figures = folder / "figures"
    if config.eval_dataset:  # the run's own figures stay as they are
        _episode_figures(figures / workdir.evaluation_name(config, EVALUATION_FIELDS), output, config)
        return
    _episode_figures(figures, output, config)
    plots.training_curves(folder / "metrics.jsonl", figures / "training.png")
    trained = [line for line in writers.read(folder / "metrics.jsonl") if line["kind"] == "train"]
    if config.method == "cxgrad" and trained:  # a run that only continued a finished one has no steps of its own
        scale_factors(trained, figures / "scale_factors.png")


def _episode_figures(figures: Path, output: EpisodeOutput, config: ConfigDict) -> None:
    if output.gradient_norm:
        gradient_norms(output.gradient_norm, figures / "gradient_norms.png", config)
    if output.pseudo_labels:
        pseudo_labels(output.pseudo_labels, figures / "pseudo_labels.png", config)


def gradient_norms(norms: Mapping[str, Any], path: Path, config: ConfigDict) -> None:
    """‖∇_θ L_support‖ of every adapted tensor at every inner step, averaged over episodes; figure and JSON beside it.

    `norms`: {tensor: [episodes, steps]}.
    """
    axes, figure = over_inner_steps(norms, path, "gradient norm (mean over test episodes)", config)
    axes.set_yscale("log")
    axes.set_title(f"Inner-loop gradients, {titled(config)}")
    plots.save(figure, path)


def pseudo_labels(values: Mapping[str, Any], path: Path, config: ConfigDict) -> None:
    """How many pseudo labels are right at every inner step, and how sure they are, averaged over episodes; figure and
    JSON beside it. `values`: {"pseudo_accuracy", "confidence": [episodes, steps]}."""
    axes, figure = over_inner_steps(values, path, "mean over test episodes", config)
    axes.set_title(f"Pseudo labels, {titled(config)}")
    plots.save(figure, path)


def over_inner_steps(values: Mapping[str, Any], path: Path, label: str, config: ConfigDict) -> tuple[Any, Any]:
    """Axes and figure of {name: [episodes, steps]} averaged over episodes; the means are written as JSON at `path`."""
    means = {name: array.mean(axis=0) for name, array in values.items()}
    figure, axes = plots.figure()
    steps = np.arange(config.inner_steps)
    axes.set_xticks(steps)
    plots.lines(axes, steps, means, "inner step", label)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({name: list(map(float, mean)) for name, mean in means.items()}, indent=2)
    path.with_suffix(".json").write_text(text)
    return axes, figure


def scale_factors(trained: list[dict[str, Any]], path: Path) -> None:
    """γ of each layer and the norm of the context over training, from the training lines of metrics.jsonl."""

    def over_training(name: str) -> list[Any]:
        return [line[name] for line in trained]

    steps = over_training("step")
    factors = sorted(name for name in trained[0] if name.startswith("gamma_") and name[6:].isdigit())
    figure, axes = plots.figure()
    plots.lines(axes, steps, {name: over_training(name) for name in factors}, "outer step", "scale factor")
    plots.save(figure, path)
    figure, axes = plots.figure()
    norms = over_training("context_norm")
    plots.lines(axes, steps, {"context norm": norms}, "outer step", "‖c‖ after adaptation")
    axes.set_yscale("log" if min(norms) > 0 else "linear")  # it stays 0 where the context is off
    plots.save(figure, path.with_name("context_norm.png"))
