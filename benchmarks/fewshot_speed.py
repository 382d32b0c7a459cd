"""Time of one second-order meta-step: our forms, and a plain PyTorch loop, on the same weights and tasks.

    python -m benchmarks.fewshot_speed --out=results/fewshot_speed_paper.json
    python -m benchmarks.fewshot_speed --sizes=b --quick --forms=maml,maml_given_labels_on_all_images,tapl

The second command times TAPL alone: against MAML, and against MAML that adapts to as many images, labels given.

All forms run in turn in one process, so that a busy machine slows them alike. Each step's wall time and its CPU time
(of all threads) are kept: on a machine that is not idle the CPU time is the steadier figure. PyTorch runs with all
cores and with one thread, and ratios are taken to the faster of the two: its threads spin while they wait for each
other, so with all cores it can become many times slower on a machine that is not idle, and so does its CPU time.
"""

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax.traverse_util import flatten_dict
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine, write_report
from benchmarks.timing import compile_timed, summarised, time_in_turn
from common import huge_pages
from fewshot import adaptation, cxgrad
from fewshot.convolution import CONVOLUTIONS, Plan, choose, over_tasks
from fewshot.models import Conv4

WAYS, QUERIES, TASKS, INNER_STEPS, INNER_RATE = 5, 75, 4, 5, 0.01
LONG_RUN, SHORT_RUN = 50_000, 10  # training steps
TOLERANCE = 1e-8  # of loss and gradients in float64, relative to each tensor's largest entry
CONTEXT_SIZE = 100
ALL_IMAGES = "maml, given labels on all images"  # what the time of TAPL is compared with
PYTORCH = ("torch", "torch, 1 thread")


class Size(NamedTuple):
    image_size: int
    channels: int
    filters: int


class Form(NamedTuple):
    method: str
    plan: Plan
    rounds: int | None = None  # of timing, for what takes too long for all
    transduction: str = "off"
    all_images: bool = False  # adapt to the query images too, with their labels given: as many images as TAPL


SIZES = {"a": Size(28, 1, 32), "b": Size(84, 3, 48)}

_OUT = flags.DEFINE_string("out", "", "JSON file to write.")
_SIZES = flags.DEFINE_list("sizes", ["a", "b"], "a: 28 px, 1 channel, 32 filters; b: 84 px, 3 channels, 48 filters.")
_FORMS = flags.DEFINE_list("forms", [], "Only these, spaces as _ and without commas: maml,tapl; 'torch': PyTorch.")
_REPEATS = flags.DEFINE_integer("repeats", None, "Timed steps of each form; default 10, with --quick 3.", lower_bound=1)
_QUICK = flags.DEFINE_bool("quick", False, "Only the chosen forms and PyTorch, 3 repeats.")


def forms(size: Size, quick: bool) -> dict[str, Form]:
    """The forms to time, by name: what `choose` takes, and what it was weighed against.

    The naive form (`vmap` of everything) is left out for large images: it would take minutes a step.
    """
    backend = jax.default_backend()
    chosen = {
        "maml": Form("maml", choose(backend, LONG_RUN)),
        "maml, short run": Form("maml", choose(backend, SHORT_RUN)),
        "cxgrad": Form("cxgrad", choose(backend, LONG_RUN)),
        ALL_IMAGES: Form("maml", choose(backend, LONG_RUN), all_images=True),
        "tapl": Form("maml", choose(backend, LONG_RUN), transduction="tapl"),
    }
    if quick:
        return chosen
    others = {"maml, patches": Form("maml", Plan("patches", "vmap", scan=True))}
    if size.image_size < 64:
        others["maml, naive"] = Form("maml", Plan("native", "vmap", scan=True), rounds=2)
    return chosen | others


def flag_name(form: str) -> str:
    """A form's name without commas and spaces, as --forms takes it."""
    return form.replace(",", "").replace(" ", "_")


def wanted(size: Size, quick: bool, only: Sequence[str]) -> tuple[dict[str, Form], bool]:
    """The forms to time, and whether PyTorch is one of them; of all of a size, those that `only` names (none: all)."""
    if not only:
        return forms(size, quick), True
    return {name: form for name, form in forms(size, False).items() if flag_name(name) in only}, "torch" in only


def make_problem(size: Size) -> tuple[dict[str, Any], adaptation.Task]:
    """Random weights (network and CxGrad's generator) and a batch of random tasks, the same in every process."""
    side, channels, filters = size
    net = Conv4(WAYS, filters).init(jax.random.key(0), jnp.zeros((1, side, side, channels)))["params"]
    random = np.random.default_rng(0)

    def images(number: int):
        return jnp.asarray(random.random((TASKS, number, side, side, channels), np.float32))

    def labels(number: int):
        return jnp.tile(jnp.repeat(jnp.arange(WAYS), number // WAYS), (TASKS, 1))

    tasks = adaptation.Task(images(WAYS), labels(WAYS), images(QUERIES), labels(QUERIES))
    sigma = {"log_sigma": jnp.zeros(())}
    return {"net": net, "generator": cxgrad.init_generator(jax.random.key(1), CONTEXT_SIZE, 4), "sigma": sigma}, tasks


def make_step(form: Form, filters: int, optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """(params, optimizer state, tasks) -> (params, optimizer state, loss, gradients)."""
    net = Conv4(WAYS, filters, conv=CONVOLUTIONS[form.plan.convolution])
    spec = adaptation.InnerLoop(
        form.method,
        INNER_STEPS,
        INNER_RATE,
        scan=form.plan.scan,
        context_size=CONTEXT_SIZE,
        transduction=form.transduction,
    )

    def step(params, state, tasks):
        if form.all_images:
            images = jnp.concatenate([tasks.support_images, tasks.query_images], axis=1)
            labels = jnp.concatenate([tasks.support_labels, tasks.query_labels], axis=1)
            tasks = tasks._replace(support_images=images, support_labels=labels)

        def task_gradient(task):
            return jax.value_and_grad(lambda params: adaptation.task_loss(spec, net.apply, params, task)[0])(params)

        results = over_tasks(task_gradient, tasks, form.plan.task_loop)
        loss, gradients = jax.tree.map(lambda leaf: leaf.mean(axis=0), results)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss, gradients

    return step


def prepare(form: Form, filters: int, params: dict, tasks: adaptation.Task) -> tuple[Callable[[], Any], dict]:
    """Compile one form; a function that runs a step and waits for it, and what the compilation cost."""
    used = {
        "net",
        *(["generator"] if form.method == "cxgrad" else []),
        *(["sigma"] if form.transduction == "tapl" else []),
    }
    params = {name: params[name] for name in used}
    optimizer = optax.adam(1e-3)
    state = optimizer.init(params)
    compiled, cost = compile_timed(jax.jit(make_step(form, filters, optimizer)), params, state, tasks)
    row = {**form._asdict(), "plan": form.plan._asdict(), **cost}
    return lambda: jax.block_until_ready(compiled(params, state, tasks)), row


def torch_step(params: dict, tasks: adaptation.Task, precision: str) -> tuple[Callable[[], Any], Callable[[], dict]]:
    """The PyTorch step, and a function that gives the gradients it left, named and laid out as ours."""
    import torch

    from benchmarks import torch_maml

    parameters, data = torch_maml.to_torch(params["net"], tasks, getattr(torch, precision))
    filters = params["net"]["conv3"]["kernel"].shape[3]

    def gradients() -> dict[str, np.ndarray]:
        return {name: torch_maml.from_torch(name, np.asarray(leaf.grad), filters) for name, leaf in parameters.items()}

    return torch_maml.meta_step(parameters, data, INNER_STEPS, INNER_RATE), gradients


def torch_runs(params: dict, tasks: adaptation.Task) -> dict[str, Callable[[], Any]]:
    """The PyTorch step with all cores and with one thread."""
    import torch

    step, _ = torch_step(params, tasks, "float32")

    def with_threads(number: int) -> Callable[[], Any]:
        def run():
            torch.set_num_threads(number)
            return step()

        return run

    return dict(zip(PYTORCH, (with_threads(os.cpu_count() or 1), with_threads(1)), strict=True))


def difference_from_torch(form: Form, filters: int, params: dict, tasks: adaptation.Task) -> float:
    """Largest |a - b| / max|b| over loss and gradients in float64. Raises RuntimeError if it is more than TOLERANCE.

    Not in float32: rounding changes which entry some pooling window takes, and that alone moves gradients by a few
    per cent at 84 px, in PyTorch as here.
    """
    with jax.enable_x64(True):

        def widen(leaf):
            return jnp.asarray(leaf, jnp.float64 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype)

        wide_params, wide_tasks = jax.tree.map(widen, ({"net": params["net"]}, tasks))
        optimizer = optax.adam(1e-3)
        step = jax.jit(make_step(form, filters, optimizer))
        _, _, loss, gradients = step(wide_params, optimizer.init(wide_params), wide_tasks)
        ours = {"loss": np.asarray(loss)} | flatten_dict(jax.device_get(gradients["net"]), sep="/")
    run, torch_gradients = torch_step(params, tasks, "float64")
    expected = {"loss": run().numpy()} | torch_gradients()
    worst = max(float(np.max(np.abs(ours[k] - v)) / np.max(np.abs(v))) for k, v in expected.items())
    if not worst <= TOLERANCE:
        raise RuntimeError(f"JAX and PyTorch differ by {worst:.1e} in loss or gradients; timings would mean nothing.")
    return worst


def measure(size: Size, repeats: int, quick: bool, only: Sequence[str]) -> dict[str, Any]:
    """Everything about one size: rows by form, ratios to the forms that are among them, and the difference from PyTorch
    (None without PyTorch)."""
    params, tasks = make_problem(size)
    runs, rounds, rows, difference = {}, {}, {}, None
    chosen, torch_too = wanted(size, quick, only)
    for name, form in chosen.items():
        runs[name], rows[name] = prepare(form, size.filters, params, tasks)
        rounds[name] = min(repeats, form.rounds or repeats)
    if torch_too and find_spec("torch") is not None:
        difference = difference_from_torch(forms(size, True)["maml, short run"], size.filters, params, tasks)
        theirs = torch_runs(params, tasks)
        runs, rounds = runs | theirs, rounds | dict.fromkeys(theirs, repeats)
    for name, row in summarised(time_in_turn(runs, rounds)).items():
        rows.setdefault(name, {}).update(row)
    for name, row in rows.items():
        for key, reference in (("to_maml", "maml"), ("to_maml_on_all_images", ALL_IMAGES)):
            if reference in rows:
                row[key] = ratios(row, rows[reference])
        if difference is not None and name not in PYTORCH:
            row["to_torch"] = ratios(row, *(rows[reference] for reference in PYTORCH))
    return {"size": size._asdict(), "difference_from_torch_float64": difference, "forms": rows}


def ratios(row: dict, *references: dict) -> dict[str, float]:
    """Median to median, fastest to fastest, CPU time to CPU time; each to the best of the references."""
    ratio = {key: row["step_ms"][key] / min(r["step_ms"][key] for r in references) for key in ("median", "min")}
    return ratio | {"cpu": row["cpu_ms"] / min(r["cpu_ms"] for r in references)}


def show(name: str, result: dict[str, Any]) -> None:
    """Print one size's rows; a ratio is median / fastest / CPU time; "all images": to MAML adapting to all of them."""
    side, channels, filters = result["size"].values()
    table = Table(title=f"{name}: {side} px, {channels} channel(s), {filters} filters, {TASKS} tasks, second order")
    for column in (
        "form",
        "compile s",
        "step ms (median / min)",
        "CPU ms",
        "to MAML",
        "all images",
        "to PyTorch",
        "temp MiB",
    ):
        table.add_column(column, justify="left" if column == "form" else "right")

    def ratio(row: dict[str, Any], key: str) -> str:
        return " / ".join(f"{value:.2f}" for value in row[key].values()) if key in row else "-"

    for form, row in result["forms"].items():
        table.add_row(
            form,
            f"{row['compile_s']:.1f}" if "compile_s" in row else "-",
            f"{row['step_ms']['median']:.0f} / {row['step_ms']['min']:.0f}",
            f"{row['cpu_ms']:.0f}",
            ratio(row, "to_maml"),
            ratio(row, "to_maml_on_all_images"),
            ratio(row, "to_torch"),
            f"{row['temporaries_mib']:.0f}" if "temporaries_mib" in row else "-",
        )
    console = Console(width=140)
    console.print(table)
    if find_spec("torch") is None:
        console.print("PyTorch is not installed: no ratios to it. `pip install -e '.[bench]'` brings it.")


def main(argv: list[str]) -> None:
    del argv
    unknown = [name for name in _SIZES.value if name not in SIZES]
    if unknown:
        raise app.UsageError(f"--sizes has {unknown[0]!r}, but takes {', '.join(SIZES)}.")
    for name in _SIZES.value:
        known = ["torch", *(flag_name(form) for form in forms(SIZES[name], False))]
        unknown = [form for form in _FORMS.value if form not in known]
        if unknown:
            raise app.UsageError(f"--forms has {unknown[0]!r}, but takes {', '.join(known)} at size {name}.")
    repeats = _REPEATS.value or (3 if _QUICK.value else 10)
    jax.config.update("jax_enable_compilation_cache", False)
    report: dict[str, Any] = {"machine": machine(), "sizes": {}}
    for name in _SIZES.value:
        report["sizes"][name] = measure(SIZES[name], repeats, _QUICK.value, _FORMS.value)
        show(name, report["sizes"][name])
    write_report(_OUT.value, report)


if __name__ == "__main__":
    huge_pages.restart()
    app.run(main)
