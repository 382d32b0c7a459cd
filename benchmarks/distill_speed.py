"""What distillation costs: step times of every method over the student alone, the teacher in the step or cached.

    python -m benchmarks.distill_speed --quick
    python -m benchmarks.distill_speed --out=results/distill_speed.json

Quick: the networks and batch of the embedded default, and the teacher cached for soft logits and the three papers only,
since most of the time goes into compiling. In full: the toolbox's ResNet8 and ResNet32 in batches of 128, whose steps
take seconds on two cores. Images are random and not augmented, so that the teacher may be computed once for
all of them ("cached"); weights are fresh ones.

All forms run in turn in one process, a step of each, so that a busy machine slows them alike; ratios are medians over
rounds of the two times of one round. The second reference is the student's step with the teacher's forward pass beside
it, which is what soft logits need: what is above that is the method's own loss.
"""

import functools
import importlib
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine, write_report
from benchmarks.timing import compile_timed, time_in_turn, to_reference
from common import huge_pages, parallel
from distill import experiment, models, train
from distill.augmentation import Augmentation
from distill.method import Variables

METHODS = ("soft_logits", "fitnet", "at", "fsp", "ab", "rkd", "vid", "ft", "sskd_svd", "mhgd", "iepkt")
QUICK_CACHED = ("soft_logits", "sskd_svd", "mhgd", "iepkt")
ALONE, TAUGHT = "student alone", "soft_logits, teacher in the step"
CLASSES = 100

_OUT = flags.DEFINE_string("out", "", "JSON file to write.")
_QUICK = flags.DEFINE_bool("quick", False, "The embedded default's size, minutes.")
_BATCH = flags.DEFINE_integer("batch_size", 0, "Images a step; 0: 128, or 64 with --quick.", lower_bound=0)
_REPEATS = flags.DEFINE_integer("repeats", 0, "Timed steps of each form; 0: 10, or 3 with --quick.", lower_bound=0)


def config_of(method: str, quick: bool, cached: bool) -> ConfigDict:
    """The config of a method, in the joint form also where the toolbox has a phase of its own."""
    file = "student" if method == "none" else method
    config = importlib.import_module(f"distill.configs.{file}").get_config("" if quick else "cifar100")
    config.stages, config.cache_teacher = "joint", cached
    return config


def recipe_of(config: ConfigDict, num_images: int) -> train.Recipe:
    """The fixed part of the student's step."""
    method = experiment.make_method(config)
    nothing = Augmentation((0.5,) * 3, (0.25,) * 3)
    fields = config.copy_and_resolve_references()
    fields.optimizer.schedule = "constant"
    return experiment.recipe_of_phase(fields, method, CLASSES, nothing, num_images)


@functools.cache
def fresh(network: models.Network, shape: tuple[int, ...]) -> Variables:
    """New weights; compiled once for all forms."""
    return jax.jit(lambda key: models.init(network, key, shape))(jax.random.key(0))


def prepare(config: ConfigDict, images: Any, labels: Any) -> tuple[Callable[[], float], dict[str, float]]:
    """A function that makes a step and returns its loss, and what compiling cost."""
    recipe = recipe_of(config, len(images))
    shape, key = images.shape[1:], jax.random.key(0)
    shapes = experiment.check_shapes(recipe, shape)
    modules = jax.jit(lambda key: recipe.method.init_modules(key, shapes[1]))(key)
    data = {"images": images, "labels": labels, "modules": Variables(*modules)}
    data |= {"teacher": fresh(recipe.teacher, shape), "start": fresh(recipe.student, shape)}
    if recipe.cached:
        data["knowledge"] = experiment.cache_knowledge(recipe, data, len(images))
    data = parallel.place_data(data)
    state = jax.jit(lambda key: train.init(recipe, shape, shapes, data, key))(jax.random.key(1))
    indices = jnp.arange(len(images))

    def step(state, data, indices, key):
        return train.train_step(recipe, state, data, indices, key)

    compiled, cost = compile_timed(jax.jit(step), state, data, indices, key)
    kept = {"state": state}

    def run() -> float:
        kept["state"], metrics = compiled(kept["state"], data, indices, key)
        total, count = metrics["loss"]
        return float(total) / float(count)

    return run, cost


def measure(quick: bool, batch_size: int, side: int) -> dict[str, dict[str, Any]]:
    """A row for each form with its ratios."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch_size, side, side, 3), np.uint8)
    labels = random.integers(0, CLASSES, batch_size).astype(np.int32)
    forms = {ALONE: config_of("none", quick, False)}
    for method in METHODS:
        forms[f"{method}, teacher in the step"] = config_of(method, quick, False)
        if not quick or method in QUICK_CACHED:
            forms[f"{method}, cached"] = config_of(method, quick, True)
    runs, compiling = {}, {}
    for name, config in forms.items():
        runs[name], compiling[name] = prepare(config, images, labels)
        print(f"{name}: compiled in {compiling[name]['compile_s']:.1f} s", flush=True)
    rows = time_in_turn(runs, _REPEATS.value or (3 if quick else 10))
    for name, row in rows.items():
        row |= compiling[name]
        row["to_student_alone"] = to_reference(row, [rows[ALONE]])
        row["to_student_and_teacher"] = to_reference(row, [rows[TAUGHT]])
    return rows


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    told = f"{report['size']}, {report['image_size']} px, batch {report['batch_size']}"
    table = Table(title=f"Distillation ({told}): one train step")
    columns = ("form", "compile s", "step ms (median / min)", "CPU ms", "to student alone", "to student and teacher")
    for column in columns:
        table.add_column(column, justify="left" if column == "form" else "right")
    for name, row in report["forms"].items():
        ratios = (row["to_student_alone"], row["to_student_and_teacher"])
        table.add_row(
            name,
            f"{row['compile_s']:.1f}",
            f"{statistics.median(row['wall_ms']):.0f} / {min(row['wall_ms']):.0f}",
            f"{min(row['cpu_ms']):.0f}",
            *(" / ".join(f"{value:.2f}" for value in ratio.values()) for ratio in ratios),
        )
    console = Console(width=130)
    console.print(table)
    console.print("Ratios are of step times: median / fastest / CPU time.")


def main(argv: list[str]) -> None:
    del argv
    size = "embedded" if _QUICK.value else "toolbox"
    report = {"machine": machine(), "size": size, "batch_size": _BATCH.value or (64 if _QUICK.value else 128)}
    report["image_size"] = config_of("none", _QUICK.value, False).image_size
    report["forms"] = measure(_QUICK.value, report["batch_size"], report["image_size"])
    show(report)
    write_report(_OUT.value, report)


if __name__ == "__main__":
    huge_pages.restart()
    app.run(main)
