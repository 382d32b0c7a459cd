"""What a run leaves: the search's history, the slim network on disk, accuracies, cost, latency, and figures."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from common import parallel, plots, writers
from common.experiment import TrainState
from common.metrics import ci95_proportion
from pruning import complexity, deploy, latency, search, setup, slim

Evaluate = Callable[[TrainState, Any], dict[str, float]]
HISTORY = ("step", "gate", "channels", "flops_kept", "loss", "score", "accuracy")


class Before(NamedTuple):
    """What fine-tuning started from."""

    setting: setup.Setting
    progress: search.Progress
    kept: slim.Kept
    dense: Any  # variables of the whole network as it was trained
    start: Any  # variables of the slim network, statistics recalibrated
    evaluate_dense: Evaluate  # on the test images: of the whole network,
    evaluate: Evaluate  # and of the slim one


def finish_search(plan: search.Search, progress: search.Progress, folder: Path) -> dict[str, float]:
    """history.csv, figures of the search, and its last row. `accuracy` there is on D_val with batch statistics."""
    rows = history_rows(plan, progress)
    if parallel.is_main():
        with (folder / "history.csv").open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(HISTORY)
            table.writerows(rows)
        draw_search(rows, folder / "figures" / "search.png")
        draw_widths(plan, progress, folder / "figures" / "widths.png")
    kept = search.ratio(plan, progress.keeps)
    loss, _, accuracy = rows[-1][4:]
    return {"steps": float(len(rows) - 1), "flops_kept": kept, "loss": float(loss), "accuracy": float(accuracy)}


def history_rows(plan: search.Search, progress: search.Progress) -> list[tuple[Any, ...]]:
    """One row of `HISTORY` for each network of the search, the whole one first."""
    rows = []
    for step in range(int(progress.length)):
        gate, keeps = int(progress.history_gate[step]), progress.history_keeps[step]
        name, channels = ("", "") if gate < 0 else (plan.graph.gates[gate].name, int(keeps[gate]))
        rows.append((step, name, channels, search.ratio(plan, keeps), *(float(x) for x in progress.history[step])))
    return rows


def draw_search(rows: list[tuple[Any, ...]], path: Path) -> None:
    """Accuracy and loss on D_val against the FLOPs that are left."""
    figure, axes = plots.figure()
    kept = [100 * row[3] for row in rows]
    series = {"accuracy on D_val (batch statistics)": [row[6] for row in rows]}
    plots.lines(axes, kept, series, "FLOPs kept, %", "accuracy on D_val, batch statistics", marker=".")
    axes.invert_xaxis()
    plots.save(figure, path)


def draw_widths(plan: search.Search, progress: search.Progress, path: Path) -> None:
    """Share of each gate's channels that is left, gates in the network's order."""
    names = [gate.name for gate in plan.graph.gates]
    figure, axes = plots.figure(height=1.0 + 0.18 * len(names))
    shares = 100 * np.asarray(progress.keeps) / plan.channels
    plots.bars(axes, names, shares, np.full(len(names), np.nan), "channels kept, %")
    plots.save(figure, path)


def finish(state: TrainState, data: Any, folder: Path, before: Before, config: ConfigDict) -> dict[str, float]:
    """The slim network in `slim/`, accuracies before and after fine-tuning, what was saved, and what took how long.

    Accuracies are on the test images, single view, last epoch, moving statistics.
    """

    def accuracy(variables: Any, evaluate: Evaluate) -> float:
        one = state.replace(params=variables["params"], model_state={"batch_stats": variables["batch_stats"]})
        return evaluate(parallel.place(one, parallel.replicated()), data)["accuracy"]

    tuned = setup.variables_of(state)
    results = {
        "dense_test_accuracy": accuracy(before.dense, before.evaluate_dense),
        "test_accuracy_before_finetuning": accuracy(before.start, before.evaluate),
        "test_accuracy": accuracy(tuned, before.evaluate),
    }
    results["test_accuracy_ci95"] = ci95_proportion(results["test_accuracy"], len(data["test_labels"]))
    results["test_accuracy_difference"] = results["test_accuracy"] - results["dense_test_accuracy"]
    place = folder.parent / "slim"
    description = _description(before, config)
    results |= _cost(description)
    if parallel.is_main():
        place.mkdir(exist_ok=True)
        deploy.save(place, description, tuned["params"], tuned["batch_stats"])
        results |= _latency(before, tuned, config, place)
        _draw_accuracies(results, folder / "figures" / "accuracy.png")
        plots.training_curves(folder / "metrics.jsonl", folder / "figures" / "training.png")
        results |= _minutes(folder.parent)
    return results


def _description(before: Before, config: ConfigDict) -> deploy.Description:
    graph, dataset = before.setting.graph, before.setting.dataset
    return deploy.Description(
        architecture=config.model.architecture,
        num_classes=graph.num_classes,
        image_channels=graph.image_channels,
        image_size=config.image_size,
        mean=tuple(before.setting.augmentation.mean),
        std=tuple(before.setting.augmentation.std),
        class_names=tuple(dataset.splits["train"].class_names),
        kept={gate: [int(index) for index in indices] for gate, indices in before.kept.items()},
    )


def _cost(description: deploy.Description) -> dict[str, float]:
    """FLOPs and parameters that are left, in both conventions of `complexity`."""
    cost, kinds = deploy.record(description)["cost"], ("flops", "params")
    return {f"{kind}_kept_{count}": cost[count][f"{kind}_kept"] for count in complexity.COUNTS for kind in kinds}


def _latency(before: Before, tuned: Any, config: ConfigDict, place: Path) -> dict[str, float]:
    """latency.md and latency.json; how many times faster the slim network is at each batch size."""
    graph = before.setting.graph
    networks = latency.variants(graph, before.dense, before.kept, tuned)
    shape = (config.image_size, config.image_size, config.channels)
    rows = latency.table(networks, shape, config.latency_batch_sizes, config.latency_runs)
    (place / "latency.md").write_text(latency.markdown(rows))
    (place / "latency.json").write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    return {f"times_faster_batch{row.batch_size}": row.times_faster for row in rows if row.network == "slim"}


def _draw_accuracies(results: dict[str, float], path: Path) -> None:
    names = {
        "whole network": "dense_test_accuracy",
        "slim, before fine-tuning": "test_accuracy_before_finetuning",
        "slim, after": "test_accuracy",
    }
    figure, axes = plots.figure()
    plots.bars(axes, list(names), [results[name] for name in names.values()], np.full(3, np.nan), "test accuracy")
    plots.save(figure, path)


def _minutes(run: Path) -> dict[str, float]:
    """Wall-clock minutes of each phase, over all its sessions."""
    found = {}
    for file in sorted(run.glob("*/metrics.jsonl")):
        readings = [line["wall_seconds"] for line in writers.read(file)]
        # Each session's clock begins at 0.
        ends = [a for a, b in zip(readings, [*readings[1:], -1.0], strict=True) if b < a]
        found[f"{file.parent.name}_minutes"] = sum(ends) / 60
    return found
