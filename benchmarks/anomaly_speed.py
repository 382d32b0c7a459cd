"""Speed and memory of CFA: the fast forms against the naive one and, where it is installed, plain PyTorch.

    python -m benchmarks.anomaly_speed [--side=128] [--out=results/anomaly_speed.json]

ResNet-18 with random weights, 4 images a step, 8 a scoring batch. All forms run in turn in one process, one call of
each, so that a busy machine slows them alike; wall and CPU time are kept. PyTorch runs with all cores and with one
thread, and ratios are taken to the faster. The losses of all forms must agree before anything is timed.
"""

import functools
import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax import lax
from rich.console import Console
from rich.table import Table

from anomaly import hypersphere, scoring, setup, train
from anomaly.configs import cfa
from anomaly.descriptor import PatchDescriptor
from benchmarks.machine import machine, write_report
from benchmarks.timing import compile_timed, summarised, time_in_turn
from common import huge_pages
from common.experiment import TrainState
from common.models.backbones import load_variables, normalize

BATCH, SCORED, TOLERANCE = 4, 8, 1e-4

Run = Callable[[], Any]


def make_recipe(side: int, **changes: Any) -> train.Recipe:
    """ResNet-18 at this input size, the rest as published."""
    config = cfa.get_config("smoke")
    config.update_from_flattened_dict({"crop": (side, side), "resize": side, "gamma_d": 1})
    return setup.make_recipe(config, setup.make_backbone(config), cached=False)._replace(**changes)


def make_state(recipe: train.Recipe, images: np.ndarray) -> TrainState:
    """Random weights, and the bank of the images."""
    variables = load_variables(recipe.backbone, "random")
    state = jax.jit(functools.partial(train.init, recipe))({"backbone": variables}, jax.random.key(0))
    phi = jax.jit(lambda state, images: train.describe(
        recipe, state.params, train.extract(recipe, state.model_state["backbone"], images)))(state, images)  # fmt: skip
    return state.replace(model_state=state.model_state | {"bank": jnp.mean(phi, axis=0)})


def naive_step(recipe: train.Recipe, state: TrainState, source: Any) -> tuple[TrainState, Any]:
    """Descriptor on the concatenation, autodiff through all distances; `source`: images, or pooled taps if cached."""
    pooled = train.gather(recipe, state.model_state["backbone"], source, jnp.arange(BATCH))

    def loss(params):
        distances = hypersphere.pairwise_sq_distances(train.describe(recipe, params, pooled), state.model_state["bank"])
        nearest = -lax.top_k(-distances, 6)[0]
        return hypersphere.coupled_hypersphere_loss(nearest, params["radius"], 3, recipe.nu, recipe.alpha).total

    value, gradients = jax.value_and_grad(loss)(state.params)
    return train.apply_gradients(state, recipe.optimizer, gradients), value


def fast_step(recipe: train.Recipe, state: TrainState, source: Any) -> tuple[TrainState, Any]:
    """The step of training."""
    batch = jnp.arange(BATCH)
    state, sums = train.train_step(recipe, state, {"train": source}, batch, jax.random.key(0))
    return state, sums["loss"][0] / BATCH


def jax_runs(
    side: int, images: np.ndarray
) -> tuple[dict[str, Run], dict[str, float], dict[str, dict[str, float]], dict[str, Any]]:
    """{form: run}, {form: first loss}, {form: what compiling cost}, and what PyTorch needs."""
    naive = make_recipe(side)
    naive = naive._replace(network=PatchDescriptor(naive.network.width, commuted=False))
    fast, cached = make_recipe(side), make_recipe(side, cached=True)
    state = make_state(naive, images[:BATCH])
    taps = jax.jit(functools.partial(train.extract, fast))(state.model_state["backbone"], images[:BATCH])
    forms = {
        "step, naive": (functools.partial(naive_step, naive), images[:BATCH]),
        "step, naive with cached taps": (functools.partial(naive_step, naive._replace(cached=True)), tuple(taps)),
        "step, fast": (functools.partial(fast_step, fast), images[:BATCH]),
        "step, fast with cached taps": (functools.partial(fast_step, cached), tuple(taps)),
    }
    runs, losses, costs = {}, {}, {}
    for name, (step, source) in forms.items():
        compiled, costs[name] = compile_timed(jax.jit(step), state, source)
        losses[name] = float(compiled(state, source)[1])
        runs[name] = functools.partial(_wait, compiled, state, source)
    for name, recipe in (("score, naive", naive), ("score, fast", fast)):
        arguments = (state.params, state.model_state, images)
        compiled, costs[name] = compile_timed(jax.jit(functools.partial(train.score_images, recipe)), *arguments)
        runs[name] = functools.partial(_wait, compiled, *arguments)
    needed = {"state": state, "backbone": naive.backbone}
    return runs | score_parts(fast, state, images), losses, costs, needed


def score_parts(recipe: train.Recipe, state: TrainState, images: np.ndarray) -> dict[str, Run]:
    """The parts of fast scoring alone: what its time goes into."""
    bank = state.model_state["bank"]

    def maps(nearest):
        patches = scoring.softmin_score(nearest).reshape(-1, *recipe.tap_shapes[0][:2])
        return scoring.anomaly_maps(patches, *recipe.size)

    parts: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "backbone": (functools.partial(train.extract, recipe), (state.model_state["backbone"],)),
        "descriptor": (functools.partial(train.describe, recipe), (state.params,)),
        "nearest": (lambda bank, phi: hypersphere.nearest_sq_distances(phi, bank, recipe.neighbours), (bank,)),
        "maps": (maps, ()),
    }
    runs: dict[str, Run] = {}
    value: Any = images
    for name, (part, fixed) in parts.items():
        compiled = jax.jit(part)
        runs[f"score, fast, only {name}"] = functools.partial(_wait, compiled, *fixed, value)
        value = compiled(*fixed, value)
    return runs


def torch_runs(needed: dict[str, Any], images: np.ndarray) -> tuple[dict[str, Run], float]:
    """The PyTorch forms with all cores and with one thread, and its first loss."""
    import torch

    from benchmarks.torch_cfa import Trainer

    state = jax.device_get(needed["state"])
    descriptor = state.params["descriptor"]

    def trainer():
        bank = state.model_state["bank"]
        return Trainer(state.model_state["backbone"], descriptor["kernel"], descriptor["bias"], bank)

    normal = np.asarray(normalize(needed["backbone"], jnp.asarray(images))).transpose(0, 3, 1, 2).copy()
    pixels, first = torch.from_numpy(normal), trainer()
    features, moving = first.features(pixels[:BATCH]), trainer()
    loss = first.step(features)
    calls = {
        "step, PyTorch": lambda: moving.step(moving.features(pixels[:BATCH])),
        "step, PyTorch with cached taps": lambda: moving.step(features),
        "score, PyTorch": lambda: moving.score(pixels),
    }

    def with_threads(number: int, call: Run) -> Run:
        def run():
            torch.set_num_threads(number)
            return call()

        return run

    cores = torch.get_num_threads()
    runs = {}
    for name, call in calls.items():
        runs |= {name: with_threads(cores, call), f"{name}, 1 thread": with_threads(1, call)}
    return runs, loss


def _wait(function: Callable[..., Any], *arguments: Any) -> Any:
    return jax.block_until_ready(function(*arguments))


def memory(side: int) -> list[dict[str, Any]]:
    """Bank and temporaries of bank building and of a step, by the number of training images (streamed, not cached)."""
    recipe, rows = make_recipe(side), []
    for count in (16, 64, 256):
        data = {
            "train": jax.ShapeDtypeStruct((count, side, side, 3), jnp.uint8),
            "backbone": setup.variables_template(recipe.backbone),
        }
        key = jax.eval_shape(lambda: jax.random.key(0))
        state = jax.eval_shape(functools.partial(train.init, recipe), data, key)
        indices = jax.ShapeDtypeStruct((SCORED,), jnp.int32)
        counted = jax.ShapeDtypeStruct((SCORED,), jnp.float32)
        building = jax.jit(functools.partial(train.sum_taps, recipe))
        step = jax.jit(functools.partial(train.train_step, recipe))
        programs = {
            "bank_building": building.lower(data["backbone"], data, indices, counted, key),
            "step": step.lower(state, data, jax.ShapeDtypeStruct((BATCH,), jnp.int32), key),
        }
        bank = state.model_state["bank"]
        sizes = {name: lowered.compile().memory_analysis() for name, lowered in programs.items()}
        temporaries = {name: getattr(found, "temp_size_in_bytes", 0) / 2**20 for name, found in sizes.items()}
        rows.append({"training_images": count, "bank_mib": math.prod(bank.shape) * 4 / 2**20, **temporaries})
    return rows


def measure(side: int, repeats: int) -> dict[str, Any]:
    """Everything at one input size."""
    images = np.random.default_rng(0).integers(0, 256, (SCORED, side, side, 3), np.uint8)
    runs, losses, costs, needed = jax_runs(side, images)
    if find_spec("torch") is not None:
        more, losses["PyTorch"] = torch_runs(needed, images)
        runs |= more
    values = list(losses.values())
    if not np.allclose(values, values[0], rtol=TOLERANCE):
        raise RuntimeError(f"The forms differ in their first loss: {losses}; timings would mean nothing.")
    times = summarised(time_in_turn(runs, repeats))
    for name, row in times.items():
        images_at_once = SCORED if name.startswith("score") else BATCH
        row["images_per_s"] = 1e3 * images_at_once / row["step_ms"]["median"]
        row |= costs.get(name, {})
    return {"side": side, "losses": losses, "forms": times, "memory": memory(side)}


def show(result: dict[str, Any]) -> None:
    """Print times, rates and memory."""
    table = Table(title=f"CFA, ResNet-18, {result['side']} px: {BATCH} images a step, {SCORED} a scoring batch")
    for column in ("form", "ms (median / min)", "CPU ms", "images/s"):
        table.add_column(column, justify="left" if column == "form" else "right")
    for name, row in result["forms"].items():
        cells = f"{row['step_ms']['median']:.0f} / {row['step_ms']['min']:.0f}", f"{row['cpu_ms']:.0f}"
        table.add_row(name, *cells, f"{row['images_per_s']:.1f}")
    console = Console(width=110)
    console.print(table)
    for row in result["memory"]:
        console.print(", ".join(f"{name} {value:.1f}" for name, value in row.items()))


def main(argv: list[str]) -> None:
    del argv
    values = flags.FLAGS
    report = {"machine": machine(), **measure(64 if values.quick else values.side, values.repeats)}
    show(report)
    write_report(values.out, report)


if __name__ == "__main__":
    huge_pages.restart()
    flags.DEFINE_string("out", "", "JSON file to write.")
    flags.DEFINE_bool("quick", False, "64 pixels, whatever --side says.")
    flags.DEFINE_integer("side", 128, "Of the images in pixels, a multiple of 32.", lower_bound=64)
    flags.DEFINE_integer("repeats", 5, "Timed calls of each form.", lower_bound=1)
    app.run(main)
