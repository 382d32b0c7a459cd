"""3x3 convolution, padding 1, in forms that stay fast when every task has its own kernel.

A convolution is one trilinear form, ⟨g, conv(x, k)⟩, read in three ways: the output from (x, k), the gradient of the
input from (g, k) and the gradient of the kernel from (x, g). The derivative of each reading is made of the other two,
so three functions are closed under reverse-mode differentiation to any order, and each can be written the way the
backend likes it (`three_forms`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Convolution = Callable[..., Array]  # (x, kernel, stride=1) -> output

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_BLOCK_SIZE = 1_300_000  # values of shifted input per matmul of the kernel gradient: what stays in the cache
_FEW_CHANNELS = 8  # below this many input channels the nine shifts make one matmul, above it three


TASK_LOOPS = ("map", "vmap")


class Plan(NamedTuple):
    """How a second-order training step is run."""

    convolution: str  # a key of CONVOLUTIONS
    task_loop: str  # "map" or "vmap", see `over_tasks`
    scan: bool  # lax.scan over the inner steps, or unrolled


def native(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c d"], stride: int = 1
) -> Float[Array, "n h_out w_out d"]:
    """The backend's own convolution; under `vmap` over kernels it becomes a grouped one (slow on CPU)."""
    return lax.conv_general_dilated(x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT)


def patches(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c d"], stride: int = 1
) -> Float[Array, "n h_out w_out d"]:
    """Nine shifted copies of the input and one matmul; under `vmap` over kernels it stays a batched matmul."""
    return jnp.concatenate(_shifts(x, stride), axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def three_forms(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c d"], stride: int = 1
) -> Float[Array, "n h_out w_out d"]:
    """Output and input gradient by the backend's convolution, kernel gradient by matmuls over blocks of images.

    Reverse mode only, to any order. Inside `jax.shard_map` with `check_vma=True` mark replicated kernels as varying
    (`lax.pcast`), as any inner loop must: otherwise its gradients are summed over the devices.
    """
    return _output(x, kernel, stride)


CONVOLUTIONS: dict[str, Convolution] = {"native": native, "patches": patches, "three_forms": three_forms}


def choose(backend: str, num_steps: int) -> Plan:
    """The fastest way of running `num_steps` second-order training steps on `backend`; evaluation: `num_steps` 0.

    On CPU unrolled inner steps save about a tenth of each step's time, and cost 1 to 2 s of compilation more than
    scanned ones: they pay from some hundred steps on. What lost there, in CPU time of a step: `vmap` over kernels
    (native: 10 times; patches: 2 times at 28 px, 4 times at 84 px, with 7 times the memory) and a Python loop over
    tasks (1.4 times, with twice the compilation and 4 times the memory). `benchmarks/fewshot_speed.py` measures the
    forms that are left. Evaluation of 28 px episodes one at a time: two thirds of the time of patches, which larger
    batches of episodes only made slower. On other backends the choice is not measured: their own convolution, all
    tasks at once.
    """
    if backend == "cpu":
        return Plan("three_forms", "map", scan=num_steps < 200)
    return Plan("native", "vmap", scan=True)


def over_tasks(function: Callable[[Any], Any], tasks: Any, task_loop: str) -> Any:
    """Results of `function` for each entry of the leading axis of `tasks`, stacked: "vmap", or "map" one at a time.

    With "map", take gradients inside `function`: only one task's activations are alive then. On several devices use
    it inside `jax.shard_map`, where it sees the tasks of one device; "vmap" may also be sharded by `jit`.
    """
    return jax.vmap(function)(tasks) if task_loop == "vmap" else lax.map(function, tasks)


def _shifts(x: Array, stride: int) -> list[Array]:
    """The nine inputs that each output position sees, row by row: [n, h_out, w_out, c] each."""
    rows, columns = (stride * ((size - 1) // stride) + 1 for size in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, i : i + rows : stride, j : j + columns : stride] for i in range(3) for j in range(3)]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _output(x: Array, kernel: Array, stride: int) -> Array:
    return native(x, kernel, stride)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _input_gradient(g: Array, kernel: Array, stride: int, size: tuple[int, int]) -> Array:
    """Spread g over the input's grid of `size`, then convolve with the kernel turned by 180 degrees."""
    if stride > 1:
        gaps = [(0, full - 1 - stride * (some - 1), stride - 1) for full, some in zip(size, g.shape[1:3], strict=True)]
        g = lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *gaps, (0, 0, 0)])
    return native(g, kernel[::-1, ::-1].swapaxes(2, 3))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _kernel_gradient(x: Array, g: Array, stride: int) -> Array:
    """Sum over blocks of images: 2 to 4 times faster than all at once, whose shifted copies do not fit the cache."""
    n, c = x.shape[0], x.shape[3]
    per_image = (9 if c < _FEW_CHANNELS else 3) * c * g.shape[1] * g.shape[2]
    most = max(1, _BLOCK_SIZE // per_image)
    block = max(size for size in range(1, min(n, most) + 1) if n % size == 0)
    if block == n:
        return _block_kernel_gradient(x, g, stride)
    blocks = tuple(array.reshape(n // block, block, *array.shape[1:]) for array in (x, g))
    return jnp.sum(lax.map(lambda pair: _block_kernel_gradient(pair[0], pair[1], stride), blocks), axis=0)


def _block_kernel_gradient(x: Array, g: Array, stride: int) -> Array:
    # g is the left factor because the left one is transposed: one transposition then serves all products.
    c, d = x.shape[3], g.shape[3]
    shifts = _shifts(x, stride)
    together = 9 if c < _FEW_CHANNELS else 3
    products = [
        jnp.tensordot(g, jnp.concatenate(shifts[i : i + together], axis=-1), axes=((0, 1, 2), (0, 1, 2)))
        for i in range(0, 9, together)
    ]
    return jnp.concatenate(products, axis=1).reshape(d, 3, 3, c).transpose(1, 2, 3, 0)


def _output_backward(stride: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return _input_gradient(g, kernel, stride, x.shape[1:3]), _kernel_gradient(x, g, stride)


def _input_gradient_backward(
    stride: int, size: tuple[int, int], saved: tuple[Array, Array], x: Array
) -> tuple[Array, Array]:
    g, kernel = saved
    return _output(x, kernel, stride), _kernel_gradient(x, g, stride)


def _kernel_gradient_backward(stride: int, saved: tuple[Array, Array], kernel: Array) -> tuple[Array, Array]:
    x, g = saved
    return _input_gradient(g, kernel, stride, x.shape[1:3]), _output(x, kernel, stride)


_output.defvjp(lambda x, k, stride: (_output(x, k, stride), (x, k)), _output_backward)
_input_gradient.defvjp(
    lambda g, k, stride, size: (_input_gradient(g, k, stride, size), (g, k)), _input_gradient_backward
)
_kernel_gradient.defvjp(lambda x, g, stride: (_kernel_gradient(x, g, stride), (x, g)), _kernel_gradient_backward)
