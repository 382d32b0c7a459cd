"""What a finished run leaves: the last epoch's numbers with the best and the untrained ones beside them, thresholds,
figures, images per second, and the table over its phases."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from anomaly import figures, summary, throughput
from anomaly.evaluation import METRICS, Calibration, calibrate, detection_metrics, write_calibration
from common import parallel, plots, writers
from common.data.anomaly import AnomalyData
from common.experiment import TrainState

WriteTable = Callable[[Path, summary.Rows], Path]


class Scorers(NamedTuple):
    """(state, data) -> scores of all test images, of all training images, the untrained state; state -> images/s."""

    test: Callable[[TrainState, Any], Any]
    good: Callable[[TrainState, Any], Any]
    untrained: Callable[[TrainState, Any], TrainState]
    throughput: Callable[[TrainState], dict[str, Any]]


def finish(
    state: TrainState,
    data: Any,
    folder: Path,
    dataset: AnomalyData,
    scorers: Scorers,
    config: ConfigDict,
    write_table: WriteTable | None,
) -> dict[str, float]:
    """Numbers, calibration.json, throughput.json and figures of a run; the table over the phases if there is one.

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
        if config.throughput_batch_sizes:
            measured = scorers.throughput(state)
            print(throughput.sentence(measured))
            throughput.write(folder, measured)
        if write_table is not None:
            own = {folder.name: results | throughput.read(folder)}
            write_table(folder.parent, summary.read_results(folder.parent) | own)
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
