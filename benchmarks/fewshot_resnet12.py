"""Memory and time of one second-order meta-step of ResNet-12, with and without recomputing the inner steps.

    python -m benchmarks.fewshot_resnet12 --out=results/fewshot_resnet12.json

Each size is compiled both ways and run in turn in one process. "temporaries" is what the compiled step needs beside its
arguments and results, as the compiler plans it. Sizes other than the small defaults, which suit two CPU cores:
--image_sizes, --filters (64 in the literature, 84 px). The flags --out and --repeats are those of fewshot_speed.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks import fewshot_speed
from benchmarks.machine import machine, write_report
from benchmarks.timing import summarised, time_in_turn
from common import huge_pages
from fewshot import adaptation
from fewshot.convolution import CONVOLUTIONS, choose, over_tasks
from fewshot.resnet12 import ResNet12

_IMAGE_SIZES = flags.DEFINE_list("image_sizes", ["28", "42"], "Heights (and widths) of the images.")
_FILTERS = flags.DEFINE_integer("filters", 16, "Channels of the first block.", lower_bound=1)
_SHOTS = flags.DEFINE_integer("shots", 1, "Support images per class.", lower_bound=1)
_TASKS = flags.DEFINE_integer("tasks", 1, "Tasks per meta-step.", lower_bound=1)
_INNER_STEPS = flags.DEFINE_integer("inner_steps", 5, "Steps of the inner loop.", lower_bound=1)


def make_problem(network: ResNet12, size: int) -> tuple[dict[str, Any], adaptation.Task]:
    """Random weights and random tasks, the same in every process."""
    random = np.random.default_rng(0)

    def part(per_class: int) -> tuple[jax.Array, jax.Array]:
        images = random.random((_TASKS.value, fewshot_speed.WAYS * per_class, size, size, 3), np.float32)
        labels = jnp.tile(jnp.repeat(jnp.arange(fewshot_speed.WAYS), per_class), (_TASKS.value, 1))
        return jnp.asarray(images), labels

    net = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]
    return {"net": net}, adaptation.Task(*part(_SHOTS.value), *part(fewshot_speed.QUERIES // fewshot_speed.WAYS))


def prepare(network: ResNet12, task_loop: str, remat: bool, params: dict, tasks: adaptation.Task):
    """Compile the meta-step; a function that runs it and returns (loss, gradients), and what the compilation cost."""
    spec = adaptation.InnerLoop("maml", _INNER_STEPS.value, fewshot_speed.INNER_RATE, remat=remat)
    optimizer = optax.adam(1e-3)

    def step(params, state, tasks):
        def task_gradient(task):
            return jax.value_and_grad(lambda p: adaptation.task_loss(spec, network.apply, p, task)[0])(params)

        results = over_tasks(task_gradient, tasks, task_loop)
        loss, gradients = jax.tree.map(lambda leaf: leaf.mean(axis=0), results)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss, gradients

    state = optimizer.init(params)
    start = time.perf_counter()
    compiled = jax.jit(step).lower(params, state, tasks).compile()
    row = {
        "compile_s": time.perf_counter() - start,
        "temporaries_mib": getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0) / 2**20,
    }
    return lambda: jax.block_until_ready(compiled(params, state, tasks)), row


def measure(size: int, repeats: int) -> dict[str, Any]:
    """Rows "kept" and "recomputed", the ratios of the second to the first, and how far their gradients are apart."""
    plan = choose(jax.default_backend(), fewshot_speed.SHORT_RUN)
    network = ResNet12(fewshot_speed.WAYS, _FILTERS.value, conv=CONVOLUTIONS[plan.convolution])
    params, tasks = make_problem(network, size)
    runs, rows = {}, {}
    for name, remat in (("kept", False), ("recomputed", True)):
        runs[name], rows[name] = prepare(network, plan.task_loop, remat, params, tasks)
    kept, recomputed = (jax.tree.leaves(run()[2:]) for run in runs.values())
    difference = max(
        float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(a))) for a, b in zip(kept, recomputed, strict=True)
    )
    for name, row in summarised(time_in_turn(runs, repeats)).items():
        rows[name].update(row)
    ratio = fewshot_speed.ratios(rows["recomputed"], rows["kept"])
    ratio["temporaries"] = rows["recomputed"]["temporaries_mib"] / rows["kept"]["temporaries_mib"]
    return {"plan": plan._asdict(), "largest_difference_float32": difference, "forms": rows, "ratio": ratio}


def main(argv: list[str]) -> None:
    del argv
    if not all(size.isdecimal() and int(size) >= 8 for size in _IMAGE_SIZES.value):
        raise app.UsageError("--image_sizes takes whole numbers from 8 on, such as 28,42.")
    jax.config.update("jax_enable_compilation_cache", False)
    settings = {flag.name: flag.value for flag in (_FILTERS, _SHOTS, _TASKS, _INNER_STEPS)}
    report: dict[str, Any] = {"machine": machine(), "settings": settings, "sizes": {}}
    table = Table(title=f"ResNet-12, second order, {settings}")
    for column in ("px", "inner steps", "compile s", "step ms (median / min)", "temporaries MiB"):
        table.add_column(column, justify="right")
    for size in _IMAGE_SIZES.value:
        result = report["sizes"][size] = measure(int(size), flags.FLAGS.repeats or 10)
        for form, row in result["forms"].items():
            step = f"{row['step_ms']['median']:.0f} / {row['step_ms']['min']:.0f}"
            table.add_row(size, form, f"{row['compile_s']:.1f}", step, f"{row['temporaries_mib']:.0f}")
        ratio = result["ratio"]
        table.add_row(size, "ratio", "", f"{ratio['median']:.2f} / {ratio['min']:.2f}", f"{ratio['temporaries']:.2f}")
    Console(width=120).print(table)
    write_report(flags.FLAGS.out, report)


if __name__ == "__main__":
    huge_pages.restart()
    app.run(main)
