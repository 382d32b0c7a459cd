"""Speed of multi-task pre-training: the joint step against one forward pass per task, against plain PyTorch, and what
the regulariser, the ensembles and gradient surgery cost.

    python -m benchmarks.multitask_speed --quick
    python -m benchmarks.multitask_speed --out=results/multitask_speed.json

Quick: the joint step, one pass per task, the naive sum and PyTorch, three timed steps of each.

The networks, batch and tasks of the embedded default. All forms run in turn in one process, a step of each, so that a
busy machine slows them alike; ratios are medians over rounds of two times of one round. PyTorch (one forward pass per
task, all cores and one thread) starts from the same weights; its first loss must be ours with a pass per task.
"""

import statistics
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine, write_report
from benchmarks.timing import compile_timed, time_in_turn, to_reference
from common import huge_pages
from common.augment import normalize
from multitask import experiment, snapshot, train
from multitask.configs import tte
from multitask.data import Pool

TOLERANCE = 1e-4  # between the first losses in float32
JOINT = "joint step"
SPLIT = "one pass per task"
FORMS: dict[str, dict[str, Any]] = {
    JOINT: {},
    SPLIT: {"bn_mode": "split"},
    "naive sum": {"metric.beta_max": 0.0, "tte.mode": "none"},
    "regulariser, no ensemble": {"tte.mode": "none"},
    "ensemble, no regulariser": {"metric.beta_max": 0.0},
    "feature ensemble": {"tte.mode": "feature_ema"},
    "task snapshots": {"tte.mode": "task_snapshot"},
    "gradient surgery": {"gradient.kind": "pcgrad"},
}
QUICK = (JOINT, SPLIT, "naive sum")
_OUT = flags.DEFINE_string("out", "", "JSON file to write.")
_QUICK = flags.DEFINE_bool("quick", False, f"Only {', '.join(QUICK)} and PyTorch.")
_REPEATS = flags.DEFINE_integer("repeats", None, "Timed steps of each form; default 10, with --quick 3.", lower_bound=1)


def pool(config: Any) -> Pool:
    """Random images, the same in every process."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (256, config.image_size, config.image_size, 3), np.uint8)
    return Pool(images, np.zeros(256, np.int32), 2, (0.5,) * 3, (0.25,) * 3)


def prepare(fields: dict[str, Any]) -> tuple[Callable[[], float], dict[str, float], Any, Any]:
    """A function that makes a step and returns its loss, what compiling took, the first state, and the batch."""
    config: Any = tte.get_config()
    # No crops, so that both frameworks see the same images; the whole weight of the regulariser from the first step.
    config.update_from_flattened_dict({"augment.padding": 0, "metric.ramp": 0.0, **fields})
    images = pool(config)
    recipe = experiment.make_recipe(config, images)
    module = snapshot if recipe.ensemble.mode == "task_snapshot" else train
    data = {"images": images.images, "labels": images.labels}
    state = jax.jit(lambda data, key: module.init(recipe, data, key))(data, jax.random.key(0))
    rows = state.model_state["tasks"]["clustering"]
    pseudo = np.arange(256, dtype=np.int32) % config.clustering_task.num_clusters
    rows = {**rows, "labels": jnp.asarray(pseudo)}
    state = state.replace(model_state={**state.model_state, "tasks": {"clustering": rows}})
    batch = np.arange(config.batch_size, dtype=np.int32)

    def step(state, data, batch, key):
        state, metrics = module.train_step(recipe, state, data, batch, key)
        return state.replace(step=state.step + 1), metrics

    compiled, cost = compile_timed(jax.jit(step), state, data, batch, jax.random.key(1))
    kept = {"state": state}

    def run() -> float:
        kept["state"], metrics = compiled(kept["state"], data, batch, jax.random.key(1))
        total, count = metrics.get("loss", metrics["regularizer"])  # snapshots minimise no sum
        return float(total) / float(count)

    shown = normalize(jnp.asarray(images.images[batch]), images.mean, images.std)
    return run, cost, state, (np.asarray(shown), pseudo[batch], np.ones(len(batch), np.float32))


def torch_runs(state: Any, batch: Any) -> dict[str, Callable[[], float]]:
    """The same training in PyTorch, on all cores and on one."""
    import torch

    from benchmarks import torch_multitask

    config: Any = tte.get_config()
    cores, runs = torch.get_num_threads(), {}
    arguments = torch_multitask.as_batch(*batch)
    trainer = torch_multitask.Trainer(
        state.params, state.model_state["batch_stats"], config.metric.beta_max, config.tte.alpha
    )
    for threads in dict.fromkeys((cores, 1)):

        def run(threads=threads) -> float:
            torch.set_num_threads(threads)
            return trainer.step(*arguments)

        runs[f"PyTorch, {threads} thread{'s' * (threads > 1)}"] = run
    return runs


def measure() -> dict[str, dict[str, Any]]:
    """A row for each form, with its ratios."""
    runs, costs, theirs = {}, {}, {}
    for name in QUICK if _QUICK.value else FORMS:
        runs[name], costs[name], state, batch = prepare(FORMS[name])
        print(f"{name}: compiled in {costs[name]['compile_s']:.1f} s", flush=True)
        if name == SPLIT and find_spec("torch") is not None:
            theirs = torch_runs(state, batch)
    rows = time_in_turn(runs | theirs, _REPEATS.value or (3 if _QUICK.value else 10))
    if theirs:
        loss, expected = rows[SPLIT]["first_loss"], rows[next(iter(theirs))]["first_loss"]
        if not abs(loss - expected) <= TOLERANCE * abs(expected):
            raise RuntimeError(f"JAX and PyTorch differ: {expected}, ours {loss}; timings would mean nothing.")
    for name, row in rows.items():
        row |= costs.get(name, {})
        row["to_joint"] = to_reference(row, [rows[JOINT]])
        if theirs and name in FORMS:
            row["to_torch"] = to_reference(row, [rows[other] for other in theirs])
    return rows


def show(rows: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title="one pre-training step of the embedded default, crops off")
    for column in (
        "form",
        "compile s",
        "temporaries MiB",
        "step ms (median / min)",
        "CPU ms",
        "to joint",
        "to PyTorch",
    ):
        table.add_column(column, justify="left" if column == "form" else "right")
    for name, row in rows.items():
        ratios = (
            " / ".join(f"{v:.2f}" for v in row[key].values()) if key in row else "-" for key in ("to_joint", "to_torch")
        )
        table.add_row(
            name,
            *(f"{row[key]:.1f}" if key in row else "-" for key in ("compile_s", "temporaries_mib")),
            f"{statistics.median(row['wall_ms']):.0f} / {min(row['wall_ms']):.0f}",
            f"{min(row['cpu_ms']):.0f}",
            *ratios,
        )
    console = Console(width=140)
    console.print(table)
    console.print("Ratios are of step times: median / fastest / CPU time; below 1 is faster than the reference.")


def main(argv: list[str]) -> None:
    del argv
    jax.config.update("jax_enable_compilation_cache", False)
    report = {"machine": machine(), "forms": measure()}
    show(report["forms"])
    write_report(_OUT.value, report)


if __name__ == "__main__":
    huge_pages.restart()
    app.run(main)
