"""Tables over the categories of a run, or over its grid of compressions, which are its phases."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from anomaly import figures, throughput
from common.data.anomaly.mvtec import TEXTURES
from common.workdir import read_config

Rows = Mapping[str, Mapping[str, Any]]  # {phase: its numbers}

_METRICS = (
    "image_auroc", "pixel_auroc", "aupro", "pixel_f1_max", "best_on_test_image_auroc", "best_on_test_pixel_auroc",
    "pro_reference",
)  # fmt: skip
_OTHERS = ("bank_mib", "images_per_s_batch_1", "images_per_s_best_batch")  # no percentages


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """{phase: results and throughput} of all finished phases in the folder of a run over several."""
    files = sorted(folder.glob("*/results.json"))
    done = [file for file in files if (file.parent / "DONE").exists()]
    return {file.parent.name: json.loads(file.read_text()) | throughput.read(file.parent) for file in done}


def grid(config: ConfigDict) -> list[tuple[int, int]]:
    """The pairs (gamma_c, gamma_d) of config.grid, whose empty side is config.gamma_c or config.gamma_d alone."""
    return list(product(config.grid.gamma_c or (config.gamma_c,), config.grid.gamma_d or (config.gamma_d,)))


def write_categories(folder: Path, rows: Rows) -> Path:
    """table.md and table.csv with a line for each category and for means over them."""
    names, body = categories(rows)
    return _write(folder, ["category"], names, body, rows)


def categories(rows: Rows) -> tuple[list[str], list[list[Any]]]:
    """(column names, rows that begin with a category); the last rows are unweighted means."""
    names = _present(rows.values())
    body = [[category, *(row.get(name, "") for name in names)] for category, row in sorted(rows.items())]
    groups: dict[str, Sequence[str]] = {"mean": list(rows)}
    if set(rows) & set(TEXTURES):
        groups = {
            "mean of textures": [category for category in rows if category in TEXTURES],
            "mean of objects": [category for category in rows if category not in TEXTURES],
        } | groups
    body += [[title, *_means(names, [rows[one] for one in members])] for title, members in groups.items() if members]
    return names, body


def write_compressions(folder: Path, rows: Rows) -> Path:
    """table.md, table.csv and figures/compression with a line or point for each gamma_c and gamma_d."""
    names, body = compressions({name: (*_gammas(folder / name), row) for name, row in rows.items()})
    figures.compressions(names, body, folder / "figures" / "compression.png")
    return _write(folder, ["gamma_c", "gamma_d"], names, body, rows)


def compressions(rows: Mapping[str, tuple[int, int, Mapping[str, Any]]]) -> tuple[list[str], list[list[Any]]]:
    """(column names, rows that begin with gamma_c and gamma_d), means where a run has several categories."""
    names = _present(row for _, _, row in rows.values())
    groups: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for gamma_c, gamma_d, row in rows.values():
        groups.setdefault((gamma_c, gamma_d), []).append(row)
    return names, [[*pair, *_means(names, members)] for pair, members in sorted(groups.items())]


def _gammas(phase: Path) -> tuple[int, int]:
    config: Any = read_config(phase)
    return config.gamma_c, config.gamma_d


def _present(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    found = {name for row in rows for name in row}
    return [name for name in (*_METRICS, *_OTHERS) if name in found]


def _means(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    values = [[row[name] for row in rows if name in row] for name in names]
    return [float(np.mean(found)) if found else "" for found in values]


def _write(folder: Path, first: Sequence[str], names: Sequence[str], body: Sequence[Sequence[Any]], rows: Rows) -> Path:
    with (folder / "table.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([[*first, *names], *body])
    lines = ["| " + " | ".join(name.replace("_", " ") for name in (*first, *names)) + " |"]
    lines += ["|---" * (len(first) + len(names)) + "|"]
    for row in body:
        cells = [_cell(name, value) for name, value in zip(names, row[len(first) :], strict=True)]
        lines += ["| " + " | ".join([*map(str, row[: len(first)]), *cells]) + " |"]
    lines += ["", "Last epoch, in %. best on test: maximum over epochs of each metric by itself (optimistic)."]
    devices = sorted({row["device"] for row in rows.values() if "device" in row})
    if devices:
        lines += [f"images/s: from pixels to maps, warm, on {', '.join(devices)}; see each throughput.json."]
    (folder / "table.md").write_text("\n".join(lines) + "\n")
    return folder / "table.md"


def _cell(name: str, value: Any) -> str:
    if value == "":
        return "-"
    return f"{value:.3g}" if name in _OTHERS else f"{100 * value:.1f}"
