"""TAPL: the golden trajectory in its three gradient modes, and the facts that its definition rests on."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import tapl
from fewshot.adaptation import InnerLoop, adapt, task_loss
from fewshot.convolution import CONVOLUTIONS
from fewshot.label_propagation import Propagation
from fewshot.models import Conv4
from tests.fewshot import official, trajectory

GOLDEN = "tapl_trajectory"
APPLY = Conv4(5, 8, dtype=jnp.dtype("float32"), conv=CONVOLUTIONS["patches"]).apply
MAML = InnerLoop("maml", 3, 0.05, transduction="tapl", propagation=Propagation(neighbours=6))


def spec_of(mode: str, **fields: Any) -> InnerLoop:
    return dataclasses.replace(MAML, tapl=tapl.Tapl(gradient=mode, **fields))


@functools.cache
def inputs():
    data = official.golden(GOLDEN)
    names = [key for key in data if key.startswith("w/") and "norm_layer" not in key]
    params = official.parameters(data | {"inner_param_names": [key.removeprefix("w/") for key in names]})
    return {"net": params["net"], "sigma": {"log_sigma": data["log_sigma"]}}, official.tasks(data)


@functools.cache
def program(spec: InnerLoop):
    """(parameters, tasks) -> trace, outer loss, its gradient, and θ_T of every task."""

    def outer_loss(params, tasks):
        losses, trace = jax.vmap(lambda task: task_loss(spec, APPLY, params, task))(tasks)
        return losses.mean(), trace

    def run(params, tasks):
        (loss, trace), gradient = jax.value_and_grad(outer_loss, has_aux=True)(params, tasks)

        def thetas(task):
            support = task.support_images, task.support_labels
            return adapt(spec, APPLY, params, *support, query_images=task.query_images).theta

        return trace | {"outer_loss": loss, "gradient": gradient, "thetas": jax.vmap(thetas)(tasks)}

    return jax.jit(run)


def run(spec: InnerLoop, params=None, tasks=None, dtype: type = np.float64):
    both = tuple(given or own for given, own in zip((params, tasks), inputs(), strict=True))
    with jax.enable_x64(dtype is np.float64):
        return jax.tree.map(np.asarray, program(spec)(*official.cast(both, dtype)))


def comparisons(mode: str, dtype: type) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{key of the golden file: (ours, theirs)} for all of a mode's results."""
    data, result = official.golden(GOLDEN), run(spec_of(mode), dtype=dtype)
    assert (float(data["query_weight"]), int(data["k"]), int(data["num_steps"])) == (1.0, 6, 3)
    pairs = {
        "inner_loss_support": result["support_loss"],
        "inner_loss_query": result["pseudo_loss"],
        "pseudo_label_step0": result["pseudo_labels"][:, 0],
        "pseudo_label_last": result["pseudo_labels"][:, -1],
        "pseudo_accuracy": result["pseudo_accuracy"],
        "target_logits": result["logits"],
        "target_loss": result["query_loss"][:, 0],
        "outer_loss": result["outer_loss"],
        "outer_grad/log_sigma": result["gradient"]["sigma"]["log_sigma"],
    }
    pairs = {f"{mode}/{key}": (ours, data[f"{mode}/{key}"]) for key, ours in pairs.items()}
    groups = {"adapted/": result["thetas"], "outer_grad/w/": trajectory.flat(result["gradient"]["net"])}
    for prefix, ours in groups.items():
        for path, key in official.keys(data, f"{mode}/{prefix}").items():
            pairs[key] = ours[path], official.layout(path, data[key])
    assert {key for key in data if key.startswith(f"{mode}/")} == pairs.keys()
    return pairs


@pytest.mark.parametrize("mode", tapl.GRADIENTS)
@pytest.mark.parametrize(("dtype", "values", "gradients"), [(np.float64, 1e-9, 1e-9), (np.float32, 1e-4, 1e-3)])
def test_trajectory_equals_golden(mode, dtype, values, gradients):
    pairs = comparisons(mode, dtype)
    accuracy = pairs.pop(f"{mode}/pseudo_accuracy")
    np.testing.assert_allclose(*accuracy, rtol=1e-6)
    if mode != "soft_outer":
        assert pairs.pop(f"{mode}/outer_grad/log_sigma") == (0, 0)
    if mode == "hard":
        for step in ("step0", "last"):
            np.testing.assert_array_equal(*pairs.pop(f"hard/pseudo_label_{step}"))
    trajectory.assert_close(pairs, values, gradients, {"accuracy": 0.0})
