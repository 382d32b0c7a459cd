"""What matching costs: a step of ELIM against plain regression with as many forward and backward passes, and the share
of Sinkhorn in it.

    python -m benchmarks.fer_speed --out=results/fer_speed.json [--quick]

Quick: the embedded default's network and batch. In full: more batch sizes and numbers of identities, and the published
AlexNet at 224 pixels (hundreds of MB, seconds a step on two cores).

All forms run in turn in one process, a step of each, so that a busy machine slows them alike; ratios are medians over
rounds of the two times of one round. "plain" makes two supervised updates, "plain, one update" half of that. Matching
is also timed alone, compiled, on features of the same shape.
"""

import functools
import statistics
from collections.abc import Callable
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
from fer import experiment, grouping, matching, train
from fer.configs import elim

_OUT = flags.DEFINE_string("out", "", "JSON file to write.")
_QUICK = flags.DEFINE_bool("quick", False, "The embedded default's size only.")
_REPEATS = flags.DEFINE_integer("repeats", 15, "Timed steps of each form.", lower_bound=1)

PLAIN, ONE = "plain", "plain, one update"
FORMS: dict[str, dict[str, Any]] = {
    PLAIN: {"method": "plain"},
    ONE: {"method": "plain", "updates": 1},
    "ELIM": {},
    "ELIM, ott-jax": {"matching.solver": "ott"},
}


def settings(quick: bool) -> dict[str, tuple[dict[str, Any], int, int]]:
    """{name: (fields, people, frames of each)}."""
    found: dict[str, tuple[dict[str, Any], int, int]] = {"embedded, 12 x 8, N 6": ({}, 12, 8)}
    if not quick:
        found["embedded, 12 x 8, N 10"] = ({"identities": 10}, 12, 8)
        found["embedded, 32 x 8, N 10"] = ({"identities": 10}, 32, 8)
        published = elim.get_config("aff_wild2_alexnet")
        fields = {name: published.model[name] for name in ("backbone", "latent", "header_factor", "dropout")}
        alexnet = {f"model.{name}": value for name, value in fields.items()}
        alexnet |= {"image_size": 224, "augmentation.crop_padding": 0, "identities": 10}
        found["AlexNet, 224 px, 16 x 4, N 10"] = (alexnet, 16, 4)
    return found


def make(fields: dict[str, Any], people: int, frames: int) -> tuple[Callable[[], float], Any, dict[str, Any]]:
    """A function that makes a step and returns its loss, the recipe, and what compiling cost."""
    config = elim.get_config()
    config.update_from_flattened_dict({"warm_up_start": 0, "warm_up_full": 0} | fields)
    recipe = experiment.make_recipe(config, (0.5,) * 3, (0.25,) * 3)
    random, side = np.random.default_rng(0), config.image_size
    batch = train.Batch(
        jnp.asarray(random.integers(0, 256, (people * frames, side, side, 3), np.uint8)),
        jnp.asarray(random.uniform(-1, 1, (people * frames, 2)).astype(np.float32)),
        jnp.asarray(np.repeat(np.arange(people), frames).astype(np.int32)),
    )
    state = jax.jit(lambda key: train.init(recipe, (side, side, 3), {}, key))(jax.random.key(0))
    step = functools.partial(train.train_step, recipe, config.updates == 2)
    compiled, told = compile_timed(jax.jit(step, donate_argnums=0), state, None, batch, jax.random.key(1))
    kept = {"state": state}

    def run() -> float:
        kept["state"], metrics = compiled(kept["state"], None, batch, jax.random.key(1))
        return float(metrics["loss"][0])

    return run, recipe, told


def match_alone(recipe: train.Recipe, latent: int, people: int, frames: int) -> Callable[[], float]:
    """Marginals, cost, Sinkhorn and shift by themselves, on features of the step's shape."""
    features = jnp.abs(jax.random.normal(jax.random.key(0), (people * frames, latent)))
    identity = jnp.repeat(jnp.arange(people), frames)

    @jax.jit
    def run(features, identity, picked):
        return matching.match(features, grouping.make_groups(identity, picked), recipe.matching).shift.sum()

    picked = jnp.arange(recipe.identities)
    return lambda: float(run(features, identity, picked))


def measure(fields: dict[str, Any], people: int, frames: int, repeats: int) -> dict[str, dict[str, Any]]:
    """A row for each form of the step, and for matching alone as "matching (form)"."""
    runs, told = {}, {}
    for name, of_form in FORMS.items():
        runs[name], recipe, told[name] = make(fields | of_form, people, frames)
        if recipe.method == "elim":
            latent = recipe.network.header.width // fields.get(
                "model.header_factor", elim.get_config().model.header_factor
            )
            runs[f"matching ({name})"] = match_alone(recipe, latent, people, frames)
    rows = time_in_turn(runs, repeats)
    for name, row in rows.items():
        row |= told.get(name, {})
        row["to_plain"] = to_reference(row, [rows[PLAIN]])
        if f"matching ({name})" in rows:
            row["share_of_matching"] = to_reference(rows[f"matching ({name})"], [row])
    return rows


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(title="One train step; ratios are median / fastest / CPU time")
    for column in ("setting", "form", "compile s", "ms (median / min)", "to plain (2 updates)", "share of matching"):
        table.add_column(column, justify="left" if column in ("setting", "form") else "right")

    def numbers(row: dict[str, Any], key: str) -> str:
        return " / ".join(f"{value:.3f}" for value in row[key].values()) if key in row else "-"

    for setting, rows in report["settings"].items():
        for name, row in rows.items():
            table.add_row(
                setting,
                name,
                f"{row['compile_s']:.1f}" if "compile_s" in row else "-",
                f"{statistics.median(row['wall_ms']):.2f} / {min(row['wall_ms']):.2f}",
                numbers(row, "to_plain"),
                numbers(row, "share_of_matching"),
            )
    Console(width=140).print(table)


def main(argv: list[str]) -> None:
    del argv
    report: dict[str, Any] = {"machine": machine(), "settings": {}}
    for name, (fields, people, frames) in settings(_QUICK.value).items():
        report["settings"][name] = measure(fields, people, frames, _REPEATS.value)
        print(f"{name} is measured.", flush=True)
    show(report)
    write_report(_OUT.value, report)


if __name__ == "__main__":
    huge_pages.restart()
    app.run(main)
