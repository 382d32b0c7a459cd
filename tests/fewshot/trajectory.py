"""Inner and outer loop on the network and task shapes of the golden files: Conv4 with 8 filters, 5-way, T = 5.

Compiling is what these tests spend their time on, so each kind of program is compiled once and takes everything else
as arguments, the inner rates too.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from common.optim import make_optimizer
from fewshot.adaptation import InnerLoop, Task, adapt, task_loss
from fewshot.convolution import CONVOLUTIONS
from fewshot.models import Conv4
from tests.fewshot import official

# Every convolution and every form of the loop once; `run`'s defaults (native, scan) are the third. CxGrad is run in all
# of them, MAML and MAML++ in one each. That convolutions, and forms of the loop, are equal among themselves is what
# test_convolution and test_adaptation show.
WAYS = {
    "three_forms-unrolled": {"conv": "three_forms", "scan": False},
    "patches-remat": {"conv": "patches", "scan": True, "remat": True},
}


def build(method: str, first_order: bool, conv: str, scan: bool, remat: bool, norm_steps: int):
    network = Conv4(5, 8, norm_steps=norm_steps, dtype=jnp.dtype("float32"), conv=CONVOLUTIONS[conv])
    apply = network.apply
    # The rates come with the parameters; NaN here would show if they were not used.
    spec = InnerLoop(method, 5, float("nan"), first_order=first_order, context_size=10, scan=scan, remat=remat)

    def outer_loss(params, tasks, importance):
        losses, trace = jax.vmap(lambda task: task_loss(spec, apply, params, task, importance))(tasks)
        return losses.mean(), trace

    def program(params, tasks, importance):
        (loss, trace), gradient = jax.value_and_grad(outer_loss, has_aux=True)(params, tasks, importance)

        def thetas(images, labels):
            return adapt(spec, apply, params, images, labels, after_step=lambda theta, step: theta).after_step

        adapted = jax.vmap(thetas)(tasks.support_images, tasks.support_labels)
        return {**trace, "outer_loss": loss, "gradient": gradient, "thetas": adapted}

    return jax.jit(program)


_program = functools.cache(build)


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
    """The trace of `task_loss`, "outer_loss", its "gradient", and "thetas": θ_1 .. θ_T as {path: [B, T, ...]}."""
    scale = params["net"]["norm0"]["scale"]
    program = _program(method, first_order, conv, scan, remat, len(scale) if scale.ndim == 2 else 0)
    with jax.enable_x64(dtype is np.float64):
        return jax.tree.map(np.asarray, program(*official.cast((params, tasks, importance), dtype)))


@functools.cache
def of_golden(name: str, dtype: type = np.float64, first_order: bool = False, **options) -> dict[str, Any]:
    """`run` on the parameters and tasks of a golden file."""
    data = official.golden(name)
    # What `build` takes for granted: the number of steps and the default rate of the context.
    assert (int(data["num_steps"]), float(data.get("context_lr", 1.0))) == (5, 1.0)
    method = "cxgrad" if name.startswith("cxgrad") else "maml"
    inputs = official.parameters(data), official.tasks(data), data.get("loss_importance")
    return run(method, *inputs, dtype=dtype, first_order=first_order, **options)


def flat(tree: dict[str, Any]) -> dict[str, np.ndarray]:
    """{"conv0/kernel": array} from nested parameters."""
    return flatten_dict(tree, sep="/")


def comparisons(name: str, dtype: type, **options) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{key of the golden file: (ours, official)} for all of its second-order results, in our layout."""
    data, result = official.golden(name), of_golden(name, dtype, **options)
    pairs = {
        "support_loss": result["support_loss"],
        "grad_norm": np.stack(
            [result["gradient_norm"][official.path(str(tensor))] for tensor in data["inner_param_names"]], axis=-1
        ),
        "target_logits": result["logits"],
        "target_loss": result["query_loss"],
        "outer_loss": result["outer_loss"],
        "accuracy": np.mean(result["logits"].argmax(-1) == official.tasks(data).query_labels),
    }
    if name.startswith("cxgrad"):
        pairs |= {"context": result["context"], "gamma": result["factors"]}
    pairs = {key: (ours, data[key]) for key, ours in pairs.items()}
    step1, last = ({path: leaf[:, t] for path, leaf in result["thetas"].items()} for t in (0, -1))
    groups = {"adapted_step1/": step1, "adapted/": last} | _gradients(result, "outer_grad")
    if any(key.startswith("after_adam") for key in data):
        updated = _after_adam(official.parameters(data), result["gradient"], dtype)
        groups |= {"after_adam/w/": flat(updated["net"])}
        groups |= {"after_adam/G/": flat(updated["generator"])} if "generator" in updated else {}
    return pairs | _pairs(data, groups)


def first_order_comparisons(name: str, dtype: type, **options) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The same for the first-order gradient."""
    result = of_golden(name, dtype, first_order=True, **options)
    groups = _gradients(result, "outer_grad_first_order")
    groups.pop("outer_grad_first_order/inner_lr/")
    return _pairs(official.golden(name), groups)


def _gradients(result, prefix):
    gradient = result["gradient"]
    groups = {f"{prefix}/w/": flat(gradient["net"]), f"{prefix}/inner_lr/": gradient["rates"]}
    return groups | ({f"{prefix}/G/": flat(gradient["generator"])} if "generator" in gradient else {})


def _pairs(data, groups):
    pairs = {}
    for prefix, ours in groups.items():
        named = official.keys(data, prefix)
        assert not named or named.keys() == ours.keys()
        pairs |= {key: (ours[path], official.layout(path, data[key])) for path, key in named.items()}
    return pairs


def _after_adam(params, gradient, dtype):
    config = {"name": "adam", "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "clip_norm": 0.0}
    optimizer = make_optimizer(ConfigDict(config | {"schedule": "constant", "learning_rate": 1e-3}))
    with jax.enable_x64(dtype is np.float64):
        params = official.cast(params, dtype)
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        return jax.tree.map(lambda leaf, update: leaf + np.asarray(update), params, updates)


INPUTS = ("w/", "G/", "x_", "y_", "inner_lr", "num_steps", "context_lr", "epoch", "inner_param_names")


def unchecked(name: str, checked: set[str]) -> list[str]:
    """The results in a golden file that no test has compared."""
    return [key for key in official.golden(name) if key not in checked and not key.startswith(INPUTS)]


def assert_close(
    pairs: dict[str, tuple[np.ndarray, np.ndarray]],
    tolerance: float,
    gradient_tolerance: float,
    exceptions: dict[str, float] | None = None,
) -> None:
    """Compare by max |a - b| / max |b|; keys that contain "grad" have a tolerance of their own, `exceptions` theirs."""
    errors = {key: official.error(*pair) for key, pair in pairs.items()}
    limits = {key: gradient_tolerance if "grad" in key else tolerance for key in pairs} | (exceptions or {})
    limits["accuracy"] = 1e-7  # the official mean is in float32
    far = {key: error for key, error in errors.items() if not error <= limits[key]}
    assert not far, f"{far} exceed {[limits[key] for key in far]}"


def assert_close_after_adam(pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """float32: within 2e-5 where |gradient| > 1e-4; Adam's first step is ±1e-3 however small the gradient."""
    compared = 0
    for key in [key for key in pairs if key.startswith("after_adam")]:
        ours, theirs = pairs.pop(key)
        large = np.abs(pairs[key.replace("after_adam", "outer_grad")][1]) > 1e-4
        compared += large.sum()
        assert np.abs(ours - theirs)[large].max(initial=0.0) <= 2e-5, key
    assert compared > 1000


def central_difference(loss: Callable[[Any], float], params: Any, direction: Any, step: float = 3e-7) -> float:
    """Slope of `loss` along a direction. The step is small because each leaky ReLU or maximum that switches within it
    makes the inner gradients jump."""
    ends = [jax.tree.map(lambda x, d, t=t: x + t * d, params, direction) for t in (step, -step)]
    return (loss(ends[0]) - loss(ends[1])) / (2 * step)


def random_direction(params: Any, seed: int = 0) -> Any:
    """Normal numbers, each tensor's as large as the tensor's own entries."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: random.standard_normal(x.shape) * np.sqrt(np.mean(x * x)), params)


def along(gradient: Any, direction: Any) -> float:
    """⟨gradient, direction⟩ over all tensors."""
    products = jax.tree.map(lambda g, d: float(np.sum(g * d)), gradient, direction)
    return sum(jax.tree.leaves(products))
