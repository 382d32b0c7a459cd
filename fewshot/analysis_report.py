"""The mode `analyse`: measures a finished run by `analysis.py` and leaves JSON and figures in its folder `analysis`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from common import plots, writers
from common.checkpoint import read_run
from fewshot import report

Summary = dict[str, dict[str, dict[str, Any]]]  # {quantity: {name: {"mean": [...], "ci95": [...]}}}
TITLES = {"biased": "linear CKA", "unbiased": "linear CKA, unbiased"}


def best_parameters(folder: Path) -> tuple[int, Any]:
    """Step and parameters of the best checkpoint by validation. Raises UserError if there is none."""
    step, tree = read_run(folder, "best")
    return step, tree["params"]


def write(folder: Path, config: ConfigDict, facts: dict[str, Any], summary: Summary) -> Path:
    """Write analysis.json and the figures to `<folder>/analysis`, or to analysis-2 and so on where another analysis is
    there already; the folder that was taken. `facts` say what was analysed: "checkpoint", "dataset", "episodes" ..."""
    text = json.dumps(facts | summary, indent=1, allow_nan=False) + "\n"
    place, number = folder / "analysis", 1
    while place.exists() and not _holds(place, text):
        number += 1
        place = folder / f"analysis-{number}"
    place.mkdir(exist_ok=True)
    (place / "analysis.json").write_text(text)
    what = f"{report.titled(config)}, {facts['episodes']} test episodes"
    trained = config.inner_steps
    norms = {name: np.asarray(values["mean"])[None, :trained] for name, values in summary["gradient_norm"].items()}
    report.gradient_norms(norms, place / "gradient_norms.png", config)
    _curves(place / "accuracy.png", summary["accuracy"], "accuracy of the query images", what)
    _curves(place / "loss.png", summary["loss"], "cross-entropy of the query images (nats)", what)
    for form, title in TITLES.items():
        label = f"{title}, against before adaptation"
        _curves(place / f"similarity_{form}.png", summary[form], label, what)
    if "factors" in summary:
        factors = np.asarray(summary["factors"]["gamma"]["mean"], np.float64)
        kernels = sorted(name for name in norms if name.endswith("kernel") and not name.startswith("head"))
        layers = {name: {"mean": column} for name, column in zip(kernels, factors.T, strict=True)}
        _curves(place / "scale_factors.png", layers, "scale factor", what)
        _curves(place / "context_norm.png", summary["context"], "‖c‖", what)
    return place


def show(summary: Summary, trained: int) -> None:
    """Print what each way of adapting reaches after the run's own number of steps, and how the blocks changed."""
    rows = [
        (f"accuracy, {_adapted(name)}", f"{values['mean'][trained]:.4f} ± {values['ci95'][trained]:.4f}")
        for name, values in summary["accuracy"].items()
    ]
    rows.append(("accuracy, before adaptation", f"{summary['accuracy']['all']['mean'][0]:.4f}"))
    for name, values in summary["unbiased"].items():
        value = values["mean"][trained]
        rows.append((f"unbiased CKA of {name}", "undefined" if value is None else f"{value:.4f}"))
    writers.table("", ["result", "value"], rows)


def _holds(place: Path, text: str) -> bool:
    file = place / "analysis.json"
    return file.is_file() and file.read_text() == text


def _adapted(name: str) -> str:
    return {"all": "adapted as trained", "head": "head alone adapted", "backbone": "backbone alone adapted"}[name]


def _curves(path: Path, group: dict[str, dict[str, Any]], ylabel: str, title: str) -> None:
    """One line per name over the inner steps, with its 95 % interval where there is one."""
    figure, axes = plots.figure()
    series: dict[str, Any] = {}
    for name, values in group.items():
        mean = np.asarray(values["mean"], np.float64)
        series[name] = (mean, np.asarray(values["ci95"], np.float64)) if "ci95" in values else mean
    steps = np.arange(len(next(iter(group.values()))["mean"]))
    axes.set_xticks(steps)
    plots.lines(axes, steps, series, "inner steps done", ylabel, title=title)
    plots.save(figure, path)
