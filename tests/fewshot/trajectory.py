"""One compiled program per kind of trajectory, shared by the tests: compiling is what these tests spend their time on."""

import functools
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from fewshot import convolution
from fewshot.adaptation import InnerLoop, Task, adapt, task_loss
from fewshot.models import Conv4
from tests.fewshot import official

CONVOLUTIONS = getattr(convolution, "CONVOLUTIONS", {"native": convolution.native})


@functools.cache
def _program(method: str, first_order: bool, conv: str, scan: bool, remat: bool, norm_steps: int):
    apply = Conv4(5, 8, norm_steps=norm_steps, conv=CONVOLUTIONS[conv]).apply
    # The rates come with the parameters; NaN here would show if they were not used.
    spec = InnerLoop(method, 5, float("nan"), first_order=first_order, context_size=10, scan=scan, remat=remat)

    def outer_loss(params, tasks, importance):
        losses, trace = jax.vmap(lambda task: task_loss(spec, apply, params, task, importance))(tasks)
        return losses.mean(), trace

    def program(params, tasks, importance):
        (loss, trace), gradient = jax.value_and_grad(outer_loss, has_aux=True)(params, tasks, importance)

        def thetas(images, labels):
            return adapt(spec, apply, params, images, labels, after_step=lambda theta, step: theta).after_step

        return {
            **trace,
            "outer_loss": loss,
            "gradient": gradient,
            "thetas": jax.vmap(thetas)(tasks.support_images, tasks.support_labels),
        }

    return jax.jit(program)


def run(
    method: str,
    params: dict[str, Any],
    tasks: Task,
    importance: np.ndarray | None = None,
    *,
    dtype: type = np.float64,
    first_order: bool = False,
    conv: str = "native",
    scan: bool = True,
    remat: bool = False,
) -> dict[str, Any]:
    """Trace, outer loss, its gradient, and "thetas" = θ_1 .. θ_T [B, T, ...] of Conv4 with 8 filters, 5-way, T = 5."""
    norm_steps = params["net"]["norm0"]["scale"].shape[0] if params["net"]["norm0"]["scale"].ndim == 2 else 0
    program = _program(method, first_order, conv, scan, remat, norm_steps)
    with jax.enable_x64(dtype is np.float64):
        return jax.tree.map(np.asarray, program(*official.cast((params, tasks, importance), dtype)))


@functools.cache
def of_golden(name: str, dtype: type, first_order: bool = False, **options) -> dict[str, Any]:
    """`run` on the parameters and tasks of a golden file."""
    data = official.golden(name)
    method = "cxgrad" if name.startswith("cxgrad") else "maml"
    importance = data.get("loss_importance")
    result = run(
        method,
        official.parameters(data),
        official.tasks(data),
        importance,
        dtype=dtype,
        first_order=first_order,
        **options,
    )
    return result


def flat(gradient: dict[str, Any]) -> dict[str, np.ndarray]:
    """{"conv0/kernel": array} from nested parameters."""
    return flatten_dict(gradient, sep="/")
