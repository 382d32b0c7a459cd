"""Trains every method and its baseline on embedded data with several seeds, and tabulates what comes out.

    python -m benchmarks.claims [--only=fewshot] [--quick] [--seeds=3] [--jobs=2]

Writes results/claims.json, results/claims.md and a figure per family, and one line per method into README.md. Every
cell is an ordinary run through the command line; a finished one is not repeated, a broken one is resumed, and a row is
written as soon as all of its seeds have ended. --tables writes tables and figures again from claims.json and runs
nothing. --quick runs every row at smoke size with two seeds, into claims-quick.*: with --jobs=2 in half an hour on 2
cores.
"""

import datetime
import json
import os
import platform
import queue
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.claim_cells import FAMILIES, Cell, Family
from benchmarks.papers import METHODS, Method
from common import plots, writers
from common.metrics import mean_ci95, paired_difference_ci95

_ONLY = flags.DEFINE_string("only", "", "Run this family alone; the others keep their last results.")
_QUICK = flags.DEFINE_bool("quick", False, "Smoke size and two seeds: shows that everything runs, proves nothing.")
_TABLES = flags.DEFINE_bool("tables", False, "Run nothing: write the tables again from the results that are there.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at a time; the cores are divided among them.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds 0 .. n-1 for every cell.")
_RUNS = flags.DEFINE_string("runs", "runs/claims", "Folder of the runs.")
_OUT = flags.DEFINE_string("out", "results", "Folder of the tables.")
_README = flags.DEFINE_string("readme", "README.md", "File whose table of methods is renewed; '' for none.")

_BEGIN, _END = "<!-- claims: begin -->", "<!-- claims: end -->"


def main(argv: Sequence[str]) -> None:
    del argv
    if _ONLY.value and _ONLY.value not in FAMILIES:
        sys.exit(f"--only is {_ONLY.value!r}, but one of {', '.join(FAMILIES)} is expected.")
    readme = Path(_README.value) if _README.value and not _QUICK.value else None
    if readme and not (readme.is_file() and _END in readme.read_text().partition(_BEGIN)[2]):
        sys.exit(f"--readme is {_README.value!r}, no file with the marks {_BEGIN} and {_END}; --readme= renews none.")
    out = Path(_OUT.value)
    file = out / ("claims-quick.json" if _QUICK.value else "claims.json")
    results = json.loads(file.read_text()) if file.exists() else {}
    for name, family in FAMILIES.items():
        if not (_TABLES.value or _ONLY.value) and family.needs and not family.needs.is_dir():
            print(f"{name} is left out: {family.needs} is not there.")
        elif not _TABLES.value and _ONLY.value in ("", name):
            for rows in _run_family(name, family):
                if len(rows) < len(results.get(name, {"rows": []})["rows"]):
                    continue  # the rows of last time stand until there are as many new ones
                setting = f"SMOKE SIZE, proves nothing, of: {family.setting}" if _QUICK.value else family.setting
                told = {"setting": setting, "cells": len(family.cells), "machine": machine(_JOBS.value)}
                results[name] = told | {"rows": rows}
                out.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(results, indent=2) + "\n")
                _write_tables(results, file.with_suffix(".md"), readme)
    _write_tables(results, file.with_suffix(".md"), readme)
    print(file.with_suffix(".md").read_text())


def _write_tables(results: Mapping[str, dict], file: Path, readme: Path | None) -> None:
    figures = {name: file.with_name(f"{file.stem}-{name}.png") for name in results}
    for name, path in figures.items():
        draw(results[name], path)
    file.write_text(f"{markdown_of_methods(results, whole=True)}\n{markdown(results, figures)}")
    if readme:
        _renew(readme, markdown_of_methods(results, whole=False))


def machine(jobs: int) -> str:
    """What the numbers were measured on."""
    at_a_time = f", {jobs} runs at a time" if jobs > 1 else ""
    return f"{os.cpu_count()} CPU cores ({platform.machine()}){at_a_time}, {datetime.date.today().isoformat()}"


def _run_family(name: str, family: Family) -> Iterator[list[dict]]:
    """The rows so far, whenever another one is complete."""
    seeds = range(2 if _QUICK.value else max(_SEEDS.value, family.seeds))
    read: list[tuple[str, Cell]] = []
    for cell in family.cells:
        if cell.before is not None and cell.before not in read:
            read.append(cell.before)
    for before in read:
        list(_run_all(before[0], [before[1]], seeds))
    rows = []
    for cell, runs in _run_all(name, family.cells, seeds):
        row = {"name": cell.name, "command": shlex.join(_command(cell, 0)), "seeds": list(seeds)}
        row["minutes"] = [round(run["minutes"], 2) for run in runs]
        for metric in cell.metrics:
            if _QUICK.value and metric not in runs[0]["results"]:
                continue  # smoke runs measure less, such as the latency of one batch size only
            values = [run["results"][metric] for run in runs]
            mean, half = mean_ci95(values)
            row[metric] = {"values": values, "mean": mean, "ci95": half}
            if rows and family.compared:
                difference, half = paired_difference_ci95(values, rows[0][metric]["values"])
                row[metric] |= {"difference": difference, "difference_ci95": half}
        rows.append(row)
        yield list(rows)


def _run_all(family: str, cells: Sequence[Cell], seeds: Sequence[int]) -> Iterator[tuple[Cell, Sequence[dict]]]:
    """Each cell with the results of its seeds, in order; --jobs runs at a time.

    What runs at a time are different cells: the second seed of a cell finds the programs that the first one compiled.
    """
    shares = queue.SimpleQueue()
    for job in range(_JOBS.value):
        shares.put(job)

    def take_cores() -> None:  # of a thread, and of the processes that it starts
        if _JOBS.value > 1 and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[shares.get() :: _JOBS.value])

    groups = [cells[first : first + _JOBS.value] for first in range(0, len(cells), _JOBS.value)]
    pairs = [(cell, seed) for group in groups for seed in seeds for cell in group]
    with ThreadPoolExecutor(_JOBS.value, initializer=take_cores) as pool:
        results = pool.map(lambda pair: _run(family, *pair), pairs)
        for group in groups:
            found = [[next(results) for _ in group] for _ in seeds]
            yield from zip(group, zip(*found, strict=True), strict=True)


def _command(cell: Cell, seed: int) -> list[str]:
    variant = ":smoke" if _QUICK.value else ""
    fields = {**({} if _QUICK.value else cell.budget), **cell.overrides}
    places = {"runs": _runs(), "seed": seed}
    overrides = [f"--config.{field}={value.format(**places)}" for field, value in fields.items()]
    return ["python", "-m", cell.module, f"--config={cell.config}{variant}", f"--config.seed={seed}", *overrides]


def _runs() -> Path:
    return Path(_RUNS.value) / ("quick" if _QUICK.value else "full")


def _run(family: str, cell: Cell, seed: int) -> dict:
    folder = folder_of(_runs(), family, cell, seed)
    command = [sys.executable, *_command(cell, seed)[1:], f"--workdir={folder}"]
    settings = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} if _QUICK.value else {}  # smoke runs compile, mostly
    subprocess.run(command, check=True, env=os.environ | settings)
    spent = sum(_seconds(writers.read(file)) for file in folder.rglob("metrics.jsonl"))
    return {"results": json.loads((folder / cell.phase / "results.json").read_text()), "minutes": spent / 60}


def folder_of(runs: Path, family: str, cell: Cell, seed: int) -> Path:
    """Where the run of a row lies."""
    slug = "-".join(re.sub(r"[,()]", "", cell.name.lower()).split())
    return runs / family / f"{slug}-seed{seed}"


def _seconds(lines: list[dict]) -> float:
    """Time spent: each session's clock starts at 0, and the longest reading of every session adds up."""
    return sum(a["wall_seconds"] for a, b in zip(lines, [*lines[1:], None], strict=True)
               if b is None or b["wall_seconds"] < a["wall_seconds"])  # fmt: skip


def markdown_of_methods(results: Mapping[str, dict], whole: bool) -> str:
    """A line for each of the ten methods: its paper and claim, and what was measured here beside a baseline.

    `whole`: with setting, metric, minutes, machine and the command of the method's row, as claims.md has it.
    """
    head = ["method", "paper", "the paper's claim (where it was read)", "baseline here", "method here"]
    head += ["difference, 95 % CI", "seeds", *(["metric", "setting", "minutes", "machine"] if whole else []), "command"]
    lines = [head, ["---"] * len(head)]
    for method in METHODS:
        name = method.name if whole else f"[{method.name}]({method.folder}/README.md)"
        paper = f"{', '.join(method.authors)}, {method.venue}" + (f", arXiv {method.arxiv}" if method.arxiv else "")
        lines.append([name, paper, f"{method.claim} ({method.certainty})", *_measured(method, results, whole)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _measured(method: Method, results: Mapping[str, dict], whole: bool) -> list[str]:
    """The cells behind the claim; dashes where the rows have not been run."""
    command = f"`python -m {method.folder}.main --config={method.folder}/configs/{method.config}.py`"
    family = results.get(method.family, {"rows": []})
    rows = {row["name"]: row for row in family["rows"]}
    if method.own.row not in rows or method.baseline.row not in rows:
        return ["not run yet", "-", "-", "-", *(["-"] * 4 if whole else []), command]
    own, baseline = rows[method.own.row][method.own.metric], rows[method.baseline.row][method.baseline.metric]
    difference, half = paired_difference_ci95(own["values"], baseline["values"])
    alone = method.baseline.row == method.own.row
    cells = [
        f"{'untrained' if alone else method.baseline.row}: {100 * baseline['mean']:.1f} ± {100 * baseline['ci95']:.1f}",
        f"{method.own.row}: {100 * own['mean']:.1f} ± {100 * own['ci95']:.1f}",
        f"{100 * difference:+.1f} ± {100 * half:.1f}",
        str(len(own["values"])),
    ]
    if whole:
        row = rows[method.own.row]
        minutes = sum(row["minutes"]) / len(row["minutes"])
        metric = f"{method.own.metric.replace('_', ' ')}, %"
        cells += [metric, family["setting"], f"{minutes:.1f}", family["machine"]]
        command = f"`{row['command']}`"
    return [*cells, command]


def markdown(results: Mapping[str, dict], figures: Mapping[str, Path]) -> str:
    """The tables of all families, from the content of claims.json, each with its figure."""
    lines = []
    for name, family in results.items():
        rows, seeds = family["rows"], len(family["rows"][0]["seeds"])
        cells = family.get("cells", len(rows))
        part = f"; {len(rows)} of {cells} rows so far" if len(rows) < cells else ""
        lines += [f"**{name}**: {family['setting']}; {seeds} seeds{part}; {family['machine']}.", ""]
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
        lines += ["", f"![{name}]({figures[name].name})", ""]
    return "\n".join(lines)


def draw(family: Mapping[str, Any], path: Path) -> None:
    """Bars of the first metric: mean over seeds, 95 % interval."""
    rows = family["rows"]
    metric = next(key for key, value in rows[0].items() if isinstance(value, dict))
    figure, axes = plots.figure(width=8.0, height=1.2 + 0.3 * len(rows))
    means, spreads = ([100 * row[metric][key] for row in rows] for key in ("mean", "ci95"))
    plots.bars(axes, [row["name"] for row in rows], means, spreads, f"{metric.replace('_', ' ')}, %")
    figure.suptitle(textwrap.fill(family["setting"], 110), fontsize="medium")
    plots.save(figure, path)


def _renew(readme: Path, text: str) -> None:
    """Put the table between the two marks of the front page."""
    before, _, rest = readme.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    readme.write_text(f"{before}{_BEGIN}\n\n{text}\n{_END}{after}")


if __name__ == "__main__":
    app.run(main)
