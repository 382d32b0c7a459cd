"""Speed of the vision transformers: images per second against plain PyTorch, the price of SPT, LSA and augmentation,
and compile times with layers scanned or written out.

    python -m benchmarks.vit_speed --out=results/vit_speed.json [--size=paper|small] [--batch_size=32] [--compile]

All forms run in turn in one process, a step of each, so that a busy machine slows them alike. PyTorch runs with all
cores and with one thread, and ratios are taken to the faster: its threads spin while they wait for each other. The
losses of both frameworks on the same weights must agree before anything is timed.
"""

import json
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from common.experiment import TrainState
from vit_small import train
from vit_small.augmentation import Augmentation
from vit_small.design import Design
from vit_small.models import T2T, CaiT, PiT, Swin, ViT

CLASSES, SIDE, SMOOTHING = 100, 32, 0.1
TOLERANCE = 1e-4  # between the first losses in float32
SIZES: dict[str, dict[str, Any]] = {
    "paper": {"width": 192, "depth": 9, "heads": 12, "head_dim": 16, "hidden": 384},
    "small": {"width": 96, "depth": 6, "heads": 6, "head_dim": 16, "hidden": 192},
}
LSA: dict[str, Any] = {"learned_temperature": True, "mask_diagonal": True}
NOTHING = {"flip": 0.0, "crop_padding": 0, "policy": "none", "erase": 0.0, "cutmix": 0.0, "mixup": 0.0}

_OUT = flags.DEFINE_string("out", "", "JSON file to write.")
_SIZE = flags.DEFINE_enum("size", "paper", list(SIZES), "Paper: 2.7 million parameters; small: the embedded default.")
_BATCH = flags.DEFINE_integer("batch_size", 128, "Images a step.", lower_bound=2)
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timed steps of each form.", lower_bound=1)
_COMPILE = flags.DEFINE_bool("compile", False, "Time the compilation of all architectures too (minutes).")


class Form(NamedTuple):
    design: Design
    augmented: bool = False


FORMS = {
    "ViT": Form(Design()),
    "ViT, layers written out": Form(Design(scan=False)),
    "ViT, SPT": Form(Design(spt=True)),
    "ViT, SPT fused": Form(Design(spt=True, fused=True)),
    "ViT, LSA": Form(Design(**LSA)),
    "SL-ViT": Form(Design(spt=True, **LSA)),
    "SL-ViT, SPT fused": Form(Design(spt=True, fused=True, **LSA)),
    "ViT, whole augmentation": Form(Design(), augmented=True),
}


def recipe_of(model: Any, augmented: bool) -> train.Recipe:
    """AdamW at a constant rate; with the paper's augmentation or none."""
    parts: dict[str, Any] = {} if augmented else NOTHING
    spec = Augmentation(CLASSES, (0.5,) * 3, (0.25,) * 3, label_smoothing=SMOOTHING, **parts)
    return train.Recipe(model, optax.adamw(1e-3, weight_decay=0.05), spec)


def problem(batch_size: int) -> dict[str, Any]:
    """Random uint8 images and labels, the same in every process."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch_size, SIDE, SIDE, 3), np.uint8)
    return {"images": images, "labels": random.integers(0, CLASSES, batch_size).astype(np.int32)}


def compile_step(model: Any, augmented: bool, data: dict[str, Any]) -> tuple[Any, TrainState, float]:
    """(compiled step, state, seconds of tracing and compiling)."""
    recipe = recipe_of(model, augmented)
    state = jax.jit(lambda key: train.init(recipe, (SIDE, SIDE, 3), None, key))(jax.random.key(0))

    def step(state, data, indices, key):
        return train.train_step(recipe, state, data, indices, key)

    arguments = (state, data, jnp.arange(len(data["labels"])), jax.random.key(1))
    started = time.perf_counter()
    compiled = jax.jit(step).lower(*arguments).compile()
    return compiled, state, time.perf_counter() - started


def prepare(form: Form, size: dict[str, Any], data: dict[str, Any]) -> tuple[Callable[[], float], dict, TrainState]:
    """A function that makes a step and returns its loss, what compiling cost, and the first state."""
    model = ViT(CLASSES, 4, design=form.design, **size)
    compiled, state, seconds = compile_step(model, form.augmented, data)
    kept, indices, key = {"state": state}, jnp.arange(len(data["labels"])), jax.random.key(1)

    def run() -> float:
        kept["state"], metrics = compiled(kept["state"], data, indices, key)
        total, count = metrics["loss"]
        return float(total) / float(count)

    return run, {"compile_s": seconds}, state


def torch_runs(size: dict[str, Any], data: dict[str, Any], states: dict[str, TrainState]) -> dict[str, Callable]:
    """ViT and SL-ViT in PyTorch with our weights, on all cores and on one."""
    import torch

    from benchmarks import torch_vit

    images = ((data["images"] / 255.0 - 0.5) / 0.25).astype(np.float32)
    cores, runs = torch.get_num_threads(), {}
    for name, ideas in (("ViT", False), ("SL-ViT", True)):
        model = torch_vit.ViT(CLASSES, 4, (SIDE // 4) ** 2, spt=ideas, lsa=ideas, **size)
        torch_vit.load(model, states[name].params)
        step = torch_vit.train_step(model, images, data["labels"], SMOOTHING)
        for threads in dict.fromkeys((cores, 1)):

            def run(step=step, threads=threads) -> float:
                torch.set_num_threads(threads)
                return step()

            runs[f"torch {name}, {threads} threads"] = run
    return runs


def time_in_turn(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, dict[str, Any]]:
    """Wall and CPU milliseconds of a step of each in turn; a first step of each is not counted but its loss kept."""
    rows: dict[str, dict[str, Any]] = {name: {"first_loss": run()} for name, run in runs.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            times[name].append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)))
    for name, pairs in times.items():
        wall, cpu = zip(*pairs, strict=True)
        rows[name] |= {"step_ms": {"median": statistics.median(wall), "min": min(wall)}, "cpu_ms": min(cpu)}
    return rows


def check_losses(rows: dict[str, dict[str, Any]]) -> None:
    """Raise RuntimeError unless both frameworks compute the same first loss."""
    for name, row in rows.items():
        if name.startswith("torch"):
            ours, theirs = rows[name.split()[1].rstrip(",")]["first_loss"], row["first_loss"]
            # The second of two runs of one PyTorch model starts a step later.
            if name.endswith(" 1 threads") and len([n for n in rows if n.startswith("torch")]) > 2:
                continue
            if abs(ours - theirs) > TOLERANCE * abs(theirs):
                raise RuntimeError(f"JAX and PyTorch differ: {name} {theirs}, ours {ours}; timings would mean nothing.")


def to_reference(rows: dict[str, dict[str, Any]], name: str, references: list[str]) -> dict[str, float]:
    """Step time over that of the fastest reference: by medians, by the fastest steps, by CPU time."""
    best = [rows[reference] for reference in references]
    ratio = {key: rows[name]["step_ms"][key] / min(r["step_ms"][key] for r in best) for key in ("median", "min")}
    return ratio | {"cpu": rows[name]["cpu_ms"] / min(r["cpu_ms"] for r in best)}


def compile_times(data: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Seconds to compile a train step of each paper-size SL architecture, layers scanned and written out."""
    seconds = {}
    for scan in (True, False):
        design = Design(spt=True, scan=scan, drop_path=0.1, **LSA)
        models = {
            "ViT": ViT(CLASSES, 4, design=design),
            "T2T": T2T(CLASSES, design=design),
            "CaiT": CaiT(CLASSES, 4, design=design),
            "PiT": PiT(CLASSES, 2, design=design),
            "Swin": Swin(CLASSES, 2, design=design),
        }
        for name, model in models.items():
            _, _, spent = compile_step(model, False, data)
            seconds.setdefault(name, {})["scanned" if scan else "written out"] = spent
    return seconds


def show(report: dict[str, Any]) -> None:
    """Print the tables."""
    table = Table(title=f"ViT ({report['size']}), {SIDE} px, batch {report['batch_size']}: one train step")
    for column in ("form", "compile s", "step ms (median / min)", "CPU ms", "images/s", "to ViT", "to PyTorch"):
        table.add_column(column, justify="left" if column == "form" else "right")

    def ratio(row: dict[str, Any], key: str) -> str:
        return " / ".join(f"{value:.2f}" for value in row[key].values()) if key in row else "-"

    for name, row in report["forms"].items():
        table.add_row(
            name,
            f"{row['compile_s']:.1f}" if "compile_s" in row else "-",
            f"{row['step_ms']['median']:.0f} / {row['step_ms']['min']:.0f}",
            f"{row['cpu_ms']:.0f}",
            f"{row['images_per_s']:.0f}",
            ratio(row, "to_vit"),
            ratio(row, "to_torch"),
        )
    console = Console(width=130)
    console.print(table)
    for name, seconds in report.get("compile_s", {}).items():
        console.print(f"{name}: " + ", ".join(f"{form} {value:.1f} s" for form, value in seconds.items()))
    if not any(name.startswith("torch") for name in report["forms"]):
        console.print("PyTorch is not installed: no ratios to it. `pip install -e '.[bench]'` brings it.")


def main(argv: list[str]) -> None:
    del argv
    jax.config.update("jax_enable_compilation_cache", False)
    size, data = SIZES[_SIZE.value], problem(_BATCH.value)
    runs, rows, states = {}, {}, {}
    for name, form in FORMS.items():
        runs[name], rows[name], states[name] = prepare(form, size, data)
    if find_spec("torch") is not None:
        runs |= torch_runs(size, data, states)
    for name, row in time_in_turn(runs, _REPEATS.value).items():
        rows.setdefault(name, {}).update(row)
    check_losses(rows)
    for name, row in rows.items():
        row["images_per_s"] = 1e3 * _BATCH.value / row["step_ms"]["median"]
        row["to_vit"] = to_reference(rows, name, ["ViT"])
        kind = "SL-ViT" if name.startswith("SL-ViT") else "ViT"
        references = [other for other in rows if other.startswith(f"torch {kind},")]
        if references and not name.startswith("torch"):
            row["to_torch"] = to_reference(rows, name, references)
    report = {"machine": machine(), "size": _SIZE.value, "batch_size": _BATCH.value, "forms": rows}
    if _COMPILE.value:
        report["compile_s"] = compile_times(data)
    show(report)
    if _OUT.value:
        Path(_OUT.value).parent.mkdir(parents=True, exist_ok=True)
        Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
