"""What a finished run leaves: the last epoch's numbers with the best and the untrained ones beside them, thresholds,
figures, and the table over categories."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from anomaly import figures
from anomaly.evaluation import METRICS, Calibration, calibrate, detection_metrics, write_calibration
from common import parallel, plots, writers
from common.data.anomaly import AnomalyData
from common.data.anomaly.mvtec import TEXTURES
from common.experiment import TrainState

_SHOWN = ("image_auroc", "pixel_auroc", "aupro", "pixel_f1_max", "best_on_test_image_auroc", "best_on_test_pixel_auroc")


class Scorers(NamedTuple):
    """(state, data) -> scores of all test images, of all training images; state -> the untrained state."""

    test: Callable[[TrainState, Any], Any]
    good: Callable[[TrainState, Any], Any]
    untrained: Callable[[TrainState, Any], TrainState]


def finish(
    state: TrainState,
    data: Any,
    folder: Path,
    dataset: AnomalyData,
    scorers: Scorers,
    config: ConfigDict,
    in_table: bool,
) -> dict[str, float]:
    """Numbers, calibration.json and figures of a run; one more row in the table of categories if there is one.

    `best_on_test_*` is the maximum over epochs of each metric by itself on the test set, as the official code reports
    it: optimistic by construction. `untrained_*` is the descriptor before its first step, with the same bank.
    """
    scores = scorers.test(state, data)
    maps, images = np.asarray(scores.maps), np.asarray(scores.images)
    last = detection_metrics(maps, images, dataset.labels, dataset.masks, config.official_pro)
    results = dict(last)
    for name, value in best_of(folder / "metrics.jsonl", int(state.step)).items():
        results[f"best_on_test_{name}"] = max(value, last.get(name, value))
    if last and not (config.init_from or config.resume_from):
        before = scorers.test(scorers.untrained(state, data), data)
        first = detection_metrics(
            np.asarray(before.maps), np.asarray(before.images), dataset.labels, dataset.masks, config.official_pro
        )
        results |= {f"untrained_{name}": value for name, value in first.items()}
    results["bank_mib"] = float(state.model_state["bank"].nbytes) / 2**20
    calibration = _calibrate(state, data, dataset, scores, scorers, config)
    if parallel.is_main():
        write_calibration(folder, calibration)
        _figures(folder, dataset, maps, images, calibration)
        if in_table:
            write_table(folder.parent, {config.category: results})
    return results


def best_of(file: Path, until: int) -> dict[str, float]:
    """The maximum of every metric over the evaluations up to a step."""
    best: dict[str, float] = {}
    for line in writers.read(file) if file.exists() else []:
        if line["kind"] == "evaluate" and line["step"] <= until:
            for name in METRICS:
                if name in line:
                    best[name] = max(best.get(name, -np.inf), float(line[name]))
    return best


def _calibrate(
    state: TrainState, data: Any, dataset: AnomalyData, scores: Any, scorers: Scorers, config: ConfigDict
) -> Calibration:
    """Thresholds from the test images, or from the training images where no test image is good."""
    labels, masks, of = dataset.labels, dataset.masks, "the test images"
    if not np.any(labels == 0):
        scores, of = scorers.good(state, data), "the training images"
        labels, masks = np.zeros(len(scores.images), np.int32), None
    maps, images = np.asarray(scores.maps), np.asarray(scores.images)
    return calibrate(maps, images, labels, masks, config.threshold, config.threshold_quantile, of)


def _figures(folder: Path, dataset: AnomalyData, maps: Any, scores: Any, calibration: Calibration) -> None:
    if (folder / "metrics.jsonl").exists():
        plots.training_curves(folder / "metrics.jsonl", folder / "figures" / "training.png")
    if len(dataset.test):
        figures.examples(dataset, maps, scores, calibration, folder / "figures" / "examples.png")
        figures.histogram(scores, dataset.labels, calibration, folder / "figures" / "scores.png")


def read_results(folder: Path) -> dict[str, dict[str, float]]:
    """{category: results} of all finished categories in the folder of a run over categories."""
    files = sorted(folder.glob("*/results.json"))
    return {file.parent.name: json.loads(file.read_text()) for file in files if (file.parent / "DONE").exists()}


def write_table(folder: Path, own: Mapping[str, Mapping[str, float]], alone: bool = False) -> Path:
    """table.md and table.csv in the folder of a run over categories: `own` beside what is finished there already."""
    rows = dict(own) if alone else {**read_results(folder), **own}
    names, body = table(rows)
    with (folder / "table.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["category", *names], *body])
    lines = ["| category | " + " | ".join(name.replace("_", " ") for name in names) + " |"]
    lines += ["|---" * (len(names) + 1) + "|"]
    lines += ["| " + " | ".join([row[0], *(_percent(name, value) for name, value in zip(names, row[1:], strict=True))])
              + " |" for row in body]  # fmt: skip
    lines += ["", "Last epoch, in %. best on test: maximum over epochs of each metric by itself (optimistic)."]
    (folder / "table.md").write_text("\n".join(lines) + "\n")
    return folder / "table.md"


def table(rows: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[Any]]]:
    """(column names, rows that begin with a category); the last rows are unweighted means."""
    names = [name for name in (*_SHOWN, "pro_reference", "bank_mib") if any(name in row for row in rows.values())]
    body = [[category, *(row.get(name, "") for name in names)] for category, row in sorted(rows.items())]
    groups: dict[str, Sequence[str]] = {"mean": list(rows)}
    if set(rows) & set(TEXTURES):
        groups = {
            "mean of textures": [category for category in rows if category in TEXTURES],
            "mean of objects": [category for category in rows if category not in TEXTURES],
        } | groups
    for title, members in groups.items():
        if members:
            means = [[rows[category][name] for category in members if name in rows[category]] for name in names]
            body.append([title, *(float(np.mean(values)) if values else "" for values in means)])
    return names, body


def _percent(name: str, value: Any) -> str:
    if value == "":
        return "-"
    return f"{value:.1f}" if name == "bank_mib" else f"{100 * value:.1f}"
