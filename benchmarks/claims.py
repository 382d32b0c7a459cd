"""Trains every method and its baseline on embedded data with several seeds, and tabulates what comes out.

    python -m benchmarks.claims [--only=fewshot] [--quick] [--seeds=3]

Writes results/claims.json, results/claims.md and a figure per family, and the same table into README.md. Every cell is
an ordinary run through the command line; a finished one is not repeated, a broken one is resumed.
"""

import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from absl import app, flags

from common import plots, writers
from common.metrics import mean_ci95, paired_difference_ci95

_ONLY = flags.DEFINE_string("only", "", "Run this family alone; the others keep their last results.")
_QUICK = flags.DEFINE_bool("quick", False, "Smoke size and two seeds: shows that everything runs, proves nothing.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds 0 .. n-1 for every cell.")
_RUNS = flags.DEFINE_string("runs", "runs/claims", "Folder of the runs.")
_OUT = flags.DEFINE_string("out", "results", "Folder of the tables.")
_README = flags.DEFINE_string("readme", "README.md", "File whose table is renewed; '' for none.")

_BEGIN, _END = "<!-- claims: begin -->", "<!-- claims: end -->"


@dataclass(frozen=True)
class Cell:
    """One row: a config with overrides, and which result counts."""

    name: str
    module: str
    config: str
    overrides: Mapping[str, str]
    metrics: Sequence[str]
    budget: Mapping[str, str] = field(default_factory=dict)  # more overrides, but for --quick


@dataclass(frozen=True)
class Family:
    """A method, its baseline (the first cell) and its ablations; or cells that are not compared with one another."""

    setting: str
    cells: Sequence[Cell]
    compared: bool = True


_ACCURACY = ("test_ensemble_accuracy", "test_best_single_accuracy")


def _fewshot(name: str, config: str, **overrides: str) -> Cell:
    return Cell(name, "fewshot.main", f"fewshot/configs/{config}.py", overrides, _ACCURACY)


_LOCALISATION = tuple(
    f"{before}{metric}" for metric in ("image_auroc", "pixel_auroc", "aupro") for before in ("", "untrained_")
)


def _anomaly(name: str, variant: str, **overrides: str) -> Cell:
    return Cell(name, "anomaly.main", "anomaly/configs/cfa.py", {"category": variant, **overrides}, _LOCALISATION)


# One TAPL step takes about eight times MAML's, so its family has a smaller budget, the same for all its cells.
_TAPL_BUDGET = {
    "glyphs.difficulty": "easy",
    "queries": "5",
    "propagation.neighbours": "10",
    "inner_steps": "3",
    "num_steps": "200",
    "tasks_per_step": "2",
    "eval_every_steps": "50",
    "save_every_steps": "50",
    "eval_episodes": "100",
    "test_episodes": "300",
    "keep_best": "3",
}


def _tapl(name: str, config: str = "tapl", **overrides: str) -> Cell:
    return replace(_fewshot(name, config, **overrides), budget=_TAPL_BUDGET)


_SMALL = ("test_accuracy", "test_accuracy_best_epoch")


def _vit_small(name: str, config: str, **overrides: str) -> Cell:
    return Cell(name, "vit_small.main", f"vit_small/configs/{config}.py", overrides, _SMALL)


_TRANSFERS = (
    *(f"classification_{name}_accuracy" for name in ("probe", "knn")),
    *(f"classification_finetune_accuracy_{percent}" for percent in (10, 100)),
    *(f"clustering_zero_shot_{name}" for name in ("nmi", "nmi_geometric", "pairwise_f1", "recall_at_1")),
    *(f"detection_map_{rule}" for rule in ("all", "11")),
)


def _multitask(name: str, tasks: str = "", **overrides: str) -> Cell:
    fields = {"tasks": tasks} if tasks else {}
    return Cell(name, "multitask.main", "multitask/configs/tte.py", fields | overrides, _TRANSFERS)


_NAIVE = {"metric.beta_max": "0.0", "tte.mode": "none"}

FAMILIES = {
    "fewshot": Family(
        "5-way 1-shot on embedded glyphs, scripts unseen in training",
        (
            _fewshot("MAML", "maml"),
            _fewshot("CxGrad", "cxgrad"),
            _fewshot("CxGrad, context off", "cxgrad", context="off"),
            _fewshot("CxGrad, gamma fixed to 1", "cxgrad", scaling="fixed_one"),
        ),
    ),
    "anomaly": Family(
        "CFA on embedded textures with made-up defects, untrained descriptor and after 15 epochs",
        (
            *(_anomaly(f"CFA, {texture}", texture) for texture in ("brick", "gravel", "grass")),
            _anomaly("CFA, grass, nearest-EMA bank", "grass", bank="nearest_ema"),
        ),
        compared=False,
    ),
    "tapl": Family(
        "5-way 1-shot on embedded glyphs (easy), scripts unseen in training; 200 steps of 2 tasks, 5 queries a class, "
        "3 inner steps, 300 test episodes",
        (
            _tapl("MAML", "maml"),
            _tapl("CxGrad", "cxgrad"),
            _tapl("TAPL on MAML (transductive)"),
            _tapl("TAPL on CxGrad (transductive)", method="cxgrad"),
            _tapl(
                "TPN-style propagation (transductive)",
                **{"transduction": "propagation", "propagation.keep_diagonal": "True"},
            ),
            _tapl("TAPL, labels of the first step (transductive)", **{"tapl.pseudo_labels": "first_step"}),
            _tapl("TAPL, hard labels (transductive)", **{"tapl.gradient": "hard"}),
            _tapl("TAPL, labels constant (transductive)", **{"tapl.gradient": "soft_constant"}),
            _tapl("TAPL, no pseudo labels (transductive)", **{"tapl.query_weight": "0.0"}),
            _tapl("TAPL, length scale from 1 (transductive)", **{"propagation.initial_sigma": "1.0"}),
            _tapl("TAPL, all pairs (transductive)", **{"propagation.neighbours": "0"}),
        ),
    ),
    "vit_small": Family(
        "72 embedded characters, 30 images each, top-1 of the last and of the best epoch",
        (
            _vit_small("ViT", "vit"),
            _vit_small("ViT, SPT", "vit", spt="True"),
            _vit_small("ViT, LSA", "vit", lsa="True"),
            _vit_small("ViT, SPT and LSA", "vit", spt="True", lsa="True"),
            _vit_small("Swin", "swin"),
            _vit_small("Swin, SPT and LSA", "swin", spt="True", lsa="True"),
        ),
    ),
    "multitask": Family(
        "our configuration (the paper's is unknown): pre-training on 64 embedded characters without labels, then 20 "
        "unseen images of each to classify, characters of other scripts to cluster, drawn shapes to detect",
        (
            _multitask("scratch", "()"),
            _multitask("autoencoder alone", "('autoencoder',)", **_NAIVE),
            _multitask("rotation alone", "('rotation',)", **_NAIVE),
            _multitask("clustering alone", "('clustering',)", **_NAIVE),
            _multitask("naive sum", **_NAIVE),
            _multitask("regulariser", **{"tte.mode": "none"}),
            _multitask("TTE", **{"metric.beta_max": "0.0"}),
            _multitask("regulariser and TTE"),
            _multitask("labels (supervised)", "('supervised',)", **_NAIVE),
        ),
        compared=False,
    ),
    "multitask_variants": Family(
        "as multitask: other readings of the ensemble, other weights of the tasks",
        (
            _multitask("feature ensemble", **{"tte.mode": "feature_ema", "tte.alpha": "0.6"}),
            _multitask("task snapshots", **{"tte.mode": "task_snapshot", "tte.alpha": "0.5"}),
            _multitask("naive sum, uncertainty weights", **_NAIVE, **{"weighting.kind": "uncertainty"}),
            _multitask("naive sum, dynamic weights", **_NAIVE, **{"weighting.kind": "dwa"}),
            _multitask("naive sum, gradient surgery", **_NAIVE, **{"gradient.kind": "pcgrad"}),
        ),
        compared=False,
    ),
}


def main(argv: Sequence[str]) -> None:
    del argv
    if _ONLY.value and _ONLY.value not in FAMILIES:
        sys.exit(f"--only is {_ONLY.value!r}, but one of {', '.join(FAMILIES)} is expected.")
    out = Path(_OUT.value)
    file = out / ("claims-quick.json" if _QUICK.value else "claims.json")
    results = json.loads(file.read_text()) if file.exists() else {}
    for name, family in FAMILIES.items():
        if _ONLY.value in ("", name):
            results[name] = {"setting": family.setting, "machine": machine(), "rows": _run_family(name, family)}
            out.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(results, indent=2) + "\n")
            draw(results[name], out / f"{file.stem}-{name}.png")
    text = markdown(results)
    file.with_suffix(".md").write_text(text)
    print(text)
    if _README.value and not _QUICK.value:
        _renew(Path(_README.value), text)


def machine() -> str:
    """What the numbers were measured on."""
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {datetime.date.today().isoformat()}"


def _run_family(name: str, family: Family) -> list[dict]:
    seeds = range(2 if _QUICK.value else _SEEDS.value)
    rows = []
    for cell in family.cells:
        runs = [_run(name, cell, seed) for seed in seeds]
        row = {"name": cell.name, "command": shlex.join(_command(cell, 0)), "seeds": list(seeds)}
        row["minutes"] = [round(run["minutes"], 2) for run in runs]
        for metric in cell.metrics:
            values = [run["results"][metric] for run in runs]
            mean, half = mean_ci95(values)
            row[metric] = {"values": values, "mean": mean, "ci95": half}
            if rows and family.compared:
                difference, half = paired_difference_ci95(values, rows[0][metric]["values"])
                row[metric] |= {"difference": difference, "difference_ci95": half}
        rows.append(row)
    return rows


def _command(cell: Cell, seed: int) -> list[str]:
    variant = ":smoke" if _QUICK.value else ""
    fields = {**({} if _QUICK.value else cell.budget), **cell.overrides}
    overrides = [f"--config.{field}={value}" for field, value in fields.items()]
    return ["python", "-m", cell.module, f"--config={cell.config}{variant}", f"--config.seed={seed}", *overrides]


def _run(family: str, cell: Cell, seed: int) -> dict:
    size = "quick" if _QUICK.value else "full"
    slug = "-".join(re.sub(r"[,()]", "", cell.name.lower()).split())
    folder = Path(_RUNS.value) / size / family / f"{slug}-seed{seed}"
    command = [sys.executable, *_command(cell, seed)[1:], f"--workdir={folder}"]
    subprocess.run(command, check=True)
    spent = sum(_seconds(file) for file in folder.rglob("metrics.jsonl"))  # of all phases
    return {"results": json.loads((folder / "results.json").read_text()), "minutes": spent / 60}


def _seconds(file: Path) -> float:
    """Each session's clock starts at 0; the longest reading of every session adds up to the time spent."""
    lines = writers.read(file)
    return sum(a["wall_seconds"] for a, b in zip(lines, [*lines[1:], None], strict=True)
               if b is None or b["wall_seconds"] < a["wall_seconds"])  # fmt: skip


def markdown(results: Mapping[str, dict]) -> str:
    """The table of all families, from the content of claims.json."""
    lines = []
    for name, family in results.items():
        rows, seeds = family["rows"], len(family["rows"][0]["seeds"])
        lines += [f"**{name}**: {family['setting']}; {seeds} seeds; {family['machine']}.", ""]
        metrics = [key for key, value in rows[0].items() if isinstance(value, dict)]
        titles = [metric.removeprefix("test_").replace("_", " ") for metric in metrics]
        compared = any("difference" in row[metric] for row in rows for metric in metrics)
        head = [f"{title} (95 % CI over seeds){' | to baseline' if compared else ''}" for title in titles]
        lines += ["| method | " + " | ".join(head) + " | minutes | command |",
                  "|---" * ((1 + compared) * len(metrics) + 3) + "|"]  # fmt: skip
        for row in rows:
            cells = []
            for metric in metrics:
                value = row[metric]
                cells.append(f"{100 * value['mean']:.1f} ± {100 * value['ci95']:.1f} %")
                if "difference" in value:
                    cells.append(f"{100 * value['difference']:+.1f} ± {100 * value['difference_ci95']:.1f}")
                elif compared:
                    cells.append("baseline")
            minutes = sum(row["minutes"]) / len(row["minutes"])
            lines.append(f"| {row['name']} | {' | '.join(cells)} | {minutes:.1f} | `{row['command']}` |")
        lines.append("")
    return "\n".join(lines)


def draw(family: Mapping[str, Any], path: Path) -> None:
    """Bars of the first metric: mean over seeds, 95 % interval."""
    rows = family["rows"]
    metric = next(key for key, value in rows[0].items() if isinstance(value, dict))
    figure, axes = plots.figure(width=8.0)
    means, spreads = ([row[metric][key] for row in rows] for key in ("mean", "ci95"))
    plots.bars(axes, [row["name"] for row in rows], means, spreads, metric.replace("_", " "), title=family["setting"])
    plots.save(figure, path)


def _renew(readme: Path, text: str) -> None:
    """Put the table between the two marks of the front page."""
    before, _, rest = readme.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    readme.write_text(f"{before}{_BEGIN}\n\n{text}\n{_END}{after}")


if __name__ == "__main__":
    app.run(main)
