"""Speed of the vision transformers: images per second against plain PyTorch, the price of SPT, LSA and augmentation,
and compile times with layers scanned or written out.

    python -m benchmarks.vit_speed --quick
    python -m benchmarks.vit_speed --out=results/vit_speed.json

Quick: the network and batch of the embedded default, and compile times with scanned layers in the embedded sizes. In
full: the paper's network of 2.7 million parameters in batches of 128, whose steps take seconds on two cores, and
compile times of the paper's sizes with layers scanned and written out.

All forms run in turn in one process, a step of each, so that a busy machine slows them alike; ratios are medians over
rounds of the two times of one round. Ours have one device, but for those called "spread": their batch is split over all
devices, one for each core on CPUs (as with JAX_NUM_CPU_DEVICES=2). PyTorch runs with all cores and with one thread, and
ratios are taken to the faster: its threads spin while they wait for each other. The losses of both frameworks on the
same weights must agree before anything is timed. What augmentation costs is the difference of two whole train steps;
beside it Pillow does flip, crop and policy of the same batch image by image, as the official code does in its data
loaders.
"""

import math
import os
import statistics
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from jax.sharding import SingleDeviceSharding
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine, write_report
from benchmarks.pillow_augmentation import augment_image
from benchmarks.timing import compile_timed, time_in_turn, to_reference
from common import huge_pages, parallel
from common.experiment import TrainState
from vit_small import experiment, train
from vit_small.augmentation import Augmentation
from vit_small.configs import cait, pit, swin, t2t, vit
from vit_small.design import Design
from vit_small.models import T2T, CaiT, PiT, Swin, ViT

CLASSES, SIDE, SMOOTHING = 100, 32, 0.1
TOLERANCE = 1e-4  # between the first losses in float32
BATCH = {"paper": 128, "small": 64}
SIZES: dict[str, dict[str, Any]] = {
    "paper": {"width": 192, "depth": 9, "heads": 12, "head_dim": 16, "hidden": 384},
    "small": {"width": 96, "depth": 6, "heads": 6, "head_dim": 16, "hidden": 192},
}
LSA: dict[str, Any] = {"learned_temperature": True, "mask_diagonal": True}
WHOLE: dict[str, Any] = {}  # the paper's augmentation, without any switch
NOTHING = {"flip": 0.0, "crop_padding": 0, "policy": "none", "erase": 0.0, "cutmix": 0.0, "mixup": 0.0}
EMBEDDED = {"flip": 0.0, "policy": "none", "erase": 0.0}  # crop, CutMix and MixUp

_OUT = flags.DEFINE_string("out", "", "JSON file to write.")
_QUICK = flags.DEFINE_bool("quick", False, "The embedded default's size, minutes.")
_BATCH = flags.DEFINE_integer("batch_size", 0, "Images a step; 0: 128, or 64 with --quick.", lower_bound=0)
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timed steps of each form.", lower_bound=1)


class Form(NamedTuple):
    design: Design
    augmentation: dict[str, Any] = NOTHING
    spread: bool = False  # the batch over several devices: on CPUs, one for each core


FORMS = {
    "ViT": Form(Design()),
    "ViT, SPT": Form(Design(spt=True)),
    "ViT, SPT fused": Form(Design(spt=True, fused=True)),
    "ViT, LSA": Form(Design(**LSA)),
    "SL-ViT": Form(Design(spt=True, **LSA)),
    "SL-ViT, SPT fused": Form(Design(spt=True, fused=True, **LSA)),
    "ViT, embedded augmentation": Form(Design(), EMBEDDED),
    "ViT, whole augmentation": Form(Design(), WHOLE),
    "ViT, spread": Form(Design(), spread=True),
    "SL-ViT, spread": Form(Design(spt=True, **LSA), spread=True),
}
WRITTEN_OUT = {"ViT, layers written out": Form(Design(scan=False))}  # in full only
PILLOW = "Pillow: flip, crop, policy"


def recipe_of(model: Any, augmentation: dict[str, Any]) -> train.Recipe:
    """AdamW at a constant rate; the paper's augmentation with these fields changed."""
    spec = Augmentation(CLASSES, (0.5,) * 3, (0.25,) * 3, label_smoothing=SMOOTHING, **augmentation)
    return train.Recipe(model, optax.adamw(1e-3, weight_decay=0.05), spec)


def problem(batch_size: int) -> dict[str, Any]:
    """Random uint8 images and labels, the same in every process."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch_size, SIDE, SIDE, 3), np.uint8)
    return {"images": images, "labels": random.integers(0, CLASSES, batch_size).astype(np.int32)}


def compile_step(
    model: Any, augmentation: dict[str, Any], data: dict[str, Any], spread: bool = False
) -> tuple[Callable[[TrainState], Any], TrainState, dict[str, float]]:
    """(compiled step, state, what compiling cost)."""
    recipe, batch_size = recipe_of(model, augmentation), len(data["labels"])
    one = SingleDeviceSharding(jax.devices()[0])
    replicated, batched = (parallel.replicated(), parallel.batched()) if spread else (one, one)
    state = jax.jit(lambda key: train.init(recipe, (SIDE, SIDE, 3), None, key))(jax.random.key(0))
    state, data, key = jax.device_put((state, data, jax.random.key(1)), replicated)
    indices = jax.device_put(jnp.arange(batch_size), batched)

    def step(state, data, indices, key):
        return train.train_step(recipe, state, data, indices, key)

    compiled, cost = compile_timed(jax.jit(step, out_shardings=replicated), state, data, indices, key)
    return lambda state: compiled(state, data, indices, key), state, cost


def prepare(
    model: Any, augmentation: dict[str, Any], data: dict[str, Any], spread: bool = False
) -> tuple[Callable[[], float], dict[str, float], TrainState]:
    """A function that makes a step and returns its loss, what compiling cost, and the first state."""
    step, state, cost = compile_step(model, augmentation, data, spread)
    kept = {"state": state}

    def run() -> float:
        kept["state"], metrics = step(kept["state"])
        total, count = metrics["loss"]
        return float(total) / float(count)

    return run, cost, state


def torch_runs(
    size: dict[str, Any], data: dict[str, Any], states: dict[str, TrainState]
) -> dict[str, dict[str, Callable[[], float]]]:
    """ViT and SL-ViT in PyTorch with our weights: {network: runs on all cores and on one}."""
    import torch

    from benchmarks import torch_vit

    images = ((data["images"] / 255.0 - 0.5) / 0.25).astype(np.float32)
    cores, runs = torch.get_num_threads(), {}
    for name, ideas in (("ViT", False), ("SL-ViT", True)):
        model = torch_vit.ViT(CLASSES, 4, (SIDE // 4) ** 2, spt=ideas, lsa=ideas, **size)
        torch_vit.load(model, states[name].params)
        step = torch_vit.train_step(model, images, data["labels"], SMOOTHING)
        runs[name] = {}
        for threads in dict.fromkeys((cores, 1)):

            def run(step=step, threads=threads) -> float:
                torch.set_num_threads(threads)
                return step()

            runs[name][f"torch {name}, {threads} thread{'s' * (threads > 1)}"] = run
    return runs


def pillow_run(data: dict[str, Any]) -> Callable[[], float]:
    """Augment the batch as the official data loader does, in one process."""
    random = np.random.default_rng(0)

    def run() -> float:
        return float(np.mean([augment_image(image, random, "cifar10").mean() for image in data["images"]]))

    return run


def check_losses(rows: dict[str, dict[str, Any]], names: dict[str, list[str]]) -> None:
    """Raise RuntimeError unless the first PyTorch run of each network has the first loss of ours.

    (Its second run trains the same weights on.)
    """
    for ours, (theirs, *_) in names.items():
        loss, expected = rows[ours]["first_loss"], rows[theirs]["first_loss"]
        if not abs(loss - expected) <= TOLERANCE * abs(expected):
            raise RuntimeError(f"JAX and PyTorch differ: {theirs} {expected}, ours {loss}; timings would mean nothing.")


def paper_models(design: Design) -> dict[str, Any]:
    """The architectures in the paper's sizes."""
    return {
        "ViT": ViT(CLASSES, 4, design=design),
        "T2T": T2T(CLASSES, design=design),
        "CaiT": CaiT(CLASSES, 4, design=design),
        "PiT": PiT(CLASSES, 2, design=design),
        "Swin": Swin(CLASSES, 2, design=design),
    }


def embedded_models(design: Design) -> dict[str, Any]:
    """The architectures in the sizes of their configs."""
    files = {"ViT": vit, "T2T": t2t, "CaiT": cait, "PiT": pit, "Swin": swin}
    models = {name: experiment.make_model(file.get_config(), CLASSES) for name, file in files.items()}
    return {name: model.clone(design=design) for name, model in models.items()}


def architectures(data: dict[str, Any], quick: bool) -> dict[str, dict[str, Any]]:
    """Seconds to compile a train step of each SL architecture, and its time; in full also with layers written out."""
    rows: dict[str, dict[str, Any]] = {}
    for scan in (True,) if quick else (True, False):
        design = Design(spt=True, scan=scan, drop_path=0.1, **LSA)
        for name, model in (embedded_models if quick else paper_models)(design).items():
            row = f"SL-{name}, {'scanned' if scan else 'written out'}"
            run, compiling, _ = prepare(model, NOTHING, data)
            rows[row] = compiling | time_in_turn({row: run}, 2)[row]
            print(f"{row}: compiled in {compiling['compile_s']:.1f} s", flush=True)
    return rows


def show(report: dict[str, Any]) -> None:
    """Print the tables."""
    table = Table(title=f"ViT ({report['size']}), {SIDE} px, batch {report['batch_size']}: one train step")
    columns = ("form", "compile s", "step ms (median / min)", "CPU ms", "images/s", "to ViT", "to PyTorch")
    for column in columns:
        table.add_column(column, justify="left" if column == "form" else "right")

    def ratio(row: dict[str, Any], key: str) -> str:
        return " / ".join(f"{value:.2f}" for value in row[key].values()) if key in row else "-"

    for name, row in report["forms"].items():
        table.add_row(
            name,
            f"{row['compile_s']:.1f}" if "compile_s" in row else "-",
            f"{statistics.median(row['wall_ms']):.0f} / {min(row['wall_ms']):.0f}",
            f"{min(row['cpu_ms']):.0f}",
            f"{row['images_per_s']:.0f}",
            ratio(row, "to_vit"),
            ratio(row, "to_torch"),
        )
    console = Console(width=130)
    console.print(table)
    console.print("Ratios are of step times: median / fastest / CPU time; below 1 is faster than the reference.")
    console.print("Architectures with stochastic depth, without augmentation:")
    for name, row in report["architectures"].items():
        console.print(
            f"  {name}: compiled in {row['compile_s']:.1f} s, "
            f"step {min(row['wall_ms']):.0f} ms, {min(row['cpu_ms']):.0f} ms of CPU time"
        )
    if not any(name.startswith("torch") for name in report["forms"]):
        console.print("PyTorch is not installed: no ratios to it. `pip install -e '.[bench]'` brings it.")


def measure(size: dict[str, Any], data: dict[str, Any], forms: dict[str, Form]) -> dict[str, dict[str, Any]]:
    """A row for each form, of ours and of PyTorch, with its ratios."""
    runs, compiling, states = {}, {}, {}
    for name, form in forms.items():
        model = ViT(CLASSES, 4, design=form.design, **size)
        runs[name], compiling[name], states[name] = prepare(model, form.augmentation, data, form.spread)
        print(f"{name}: compiled in {compiling[name]['compile_s']:.1f} s", flush=True)
    theirs = torch_runs(size, data, states) if find_spec("torch") is not None else {}
    for of_network in theirs.values():
        runs |= of_network
    runs[PILLOW] = pillow_run(data)
    rows = time_in_turn(runs, _REPEATS.value)
    check_losses(rows, {name: list(of_network) for name, of_network in theirs.items()})
    for name, row in rows.items():
        row |= compiling.get(name, {})
        row["images_per_s"] = 1e3 * len(data["labels"]) / statistics.median(row["wall_ms"])
        row["to_vit"] = to_reference(row, [rows["ViT"]])
        references = theirs.get("SL-ViT" if name.startswith("SL-ViT") else "ViT", {})
        if references and name in forms:
            row["to_torch"] = to_reference(row, [rows[reference] for reference in references])
    return rows


def main(argv: list[str]) -> None:
    del argv
    jax.config.update("jax_enable_compilation_cache", False)
    size = "small" if _QUICK.value else "paper"
    batch_size = _BATCH.value or BATCH[size]
    jax.config.update("jax_num_cpu_devices", math.gcd(batch_size, os.cpu_count() or 1))
    data = problem(batch_size)
    report = {"machine": machine(), "size": size, "batch_size": len(data["labels"])}
    report["forms"] = measure(SIZES[size], data, FORMS if _QUICK.value else FORMS | WRITTEN_OUT)
    report["architectures"] = architectures(data, _QUICK.value)
    show(report)
    write_report(_OUT.value, report)


if __name__ == "__main__":
    huge_pages.restart()
    app.run(main)
