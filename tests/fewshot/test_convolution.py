"""All forms of the convolution are the same function, with its first and second derivatives."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fewshot import convolution
from fewshot.convolution import CONVOLUTIONS, Plan, choose, over_tasks

FORMS = ("patches", "three_forms")
SHAPES = [  # images, height, width, input channels, output channels, stride
    (2, 7, 5, 1, 4, 1),
    (3, 6, 9, 3, 5, 1),
    (2, 8, 8, 8, 6, 1),
    (3, 7, 10, 3, 4, 2),
    (2, 9, 8, 8, 3, 2),
    (1, 1, 2, 3, 2, 2),
]


def example(shape, tasks=None, dtype=jnp.float64):
    n, h, w, c, d, stride = shape
    lead = () if tasks is None else (tasks,)
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (*lead, n, h, w, c), dtype)
    return x, jax.random.normal(keys[1], (*lead, 3, 3, c, d), dtype), stride


def assert_same(got, expected, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        scale = max(float(jnp.max(jnp.abs(b))), 1e-3)
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=tolerance)


def every_order(conv, x, kernel, stride):
    """Value, gradient and the gradient of a function of the gradient: pure and mixed second derivatives all count."""

    def loss(x, kernel):
        return jnp.sum(jnp.sin(conv(x, kernel, stride)))

    def gradient_size(x, kernel):
        gradients = jax.grad(loss, argnums=(0, 1))(x, kernel)
        return sum(jnp.sum(jnp.cos(leaf)) for leaf in gradients)

    second = jax.grad(gradient_size, argnums=(0, 1))
    return conv(x, kernel, stride), jax.grad(loss, argnums=(0, 1))(x, kernel), second(x, kernel)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_forms_agree_with_native_to_second_order(float64, form, shape):
    x, kernel, stride = example(shape)
    got, expected = (
        jax.jit(every_order, static_argnums=(0, 3))(conv, x, kernel, stride)
        for conv in (CONVOLUTIONS[form], convolution.native)
    )
    assert_same(got, expected, 1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[4]])
def test_forms_agree_under_vmap_over_kernels(float64, form, shape):
    x, kernel, stride = example(shape, tasks=2)

    def over_tasks(conv):
        return jax.jit(jax.vmap(lambda x, kernel: every_order(conv, x, kernel, stride)))(x, kernel)

    assert_same(over_tasks(CONVOLUTIONS[form]), over_tasks(convolution.native), 1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_forms_agree_in_float32(form):
    x, kernel, stride = example(SHAPES[2], dtype=jnp.float32)
    got, expected = (every_order(conv, x, kernel, stride)[:2] for conv in (CONVOLUTIONS[form], convolution.native))
    assert_same(got, expected, 1e-5)


@pytest.mark.parametrize("channels", [3, 8])
def test_kernel_gradient_in_blocks_of_images(float64, monkeypatch, channels):
    monkeypatch.setattr(convolution, "_BLOCK_SIZE", 2 * 5 * 4 * channels * (9 if channels == 3 else 3))  # two images
    x, kernel, stride = example((6, 5, 4, channels, 3, 1))
    got, expected = (every_order(conv, x, kernel, stride) for conv in (convolution.three_forms, convolution.native))
    assert_same(got, expected, 1e-10)


def test_padding_is_one_on_every_side():
    """Stride 2 on an even size: padding "SAME" would put all of it on the far side."""
    image = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(1.0)
    kernel = jnp.arange(9.0).reshape(3, 3, 1, 1)
    for conv in CONVOLUTIONS.values():
        np.testing.assert_allclose(conv(image, kernel, 2)[0, :, :, 0], [[4.0, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_second_derivative_matches_central_differences(float64, form):
    x, kernel, _ = example(SHAPES[1])
    direction = jax.random.normal(jax.random.key(1), kernel.shape)

    def gradient(kernel):
        return jax.grad(lambda kernel: jnp.sum(jnp.sin(CONVOLUTIONS[form](x, kernel))))(kernel)

    exact = jax.grad(lambda kernel: jnp.vdot(gradient(kernel), direction))(kernel)
    step = 1e-5
    differences = (gradient(kernel + step * direction) - gradient(kernel - step * direction)) / (2 * step)
    assert_same(differences, exact, 1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_forms_inside_scan_and_map(float64, form):
    x, kernel, _ = example(SHAPES[1], tasks=2)
    conv = CONVOLUTIONS[form]

    def descend(conv, x, kernel):
        def step(kernel, _):
            return kernel - 0.1 * jax.grad(lambda kernel: jnp.sum(jnp.sin(conv(x, kernel))))(kernel), None

        return jnp.sum(jnp.cos(lax.scan(step, kernel, None, length=2)[0]))

    def meta_gradient(conv):
        return jax.jit(lambda: lax.map(lambda pair: jax.grad(descend, argnums=2)(conv, *pair), (x, kernel)))()

    assert_same(meta_gradient(conv), meta_gradient(convolution.native), 1e-10)


SHARDED = """
import sys
import jax, jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P
from fewshot.convolution import CONVOLUTIONS

mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
tasks = jax.random.normal(jax.random.key(0), (8, 2, 6, 5, 3))
kernels = [jax.random.normal(jax.random.key(1), (3, 3, 3, 4)), jax.random.normal(jax.random.key(2), (3, 3, 4, 2))]

def task_loss(conv, kernels, x):
    def support(kernels):
        return jnp.sum(jnp.sin(conv(jnp.tanh(conv(x, kernels[0])), kernels[1], 2)))
    gradient = jax.grad(support)(kernels)
    return jnp.cos(support([k - 0.01 * g for k, g in zip(kernels, gradient)]))

def mean_loss(conv, kernels, tasks):
    return jnp.mean(jax.lax.map(lambda x: task_loss(conv, kernels, x), tasks))

expected = jax.grad(lambda k: mean_loss(CONVOLUTIONS["native"], k, tasks))(kernels)
for form in ("native", "patches", "three_forms"):
    conv = CONVOLUTIONS[form]
    for check_vma in (True, False):
        def gradient(kernels, tasks):
            if check_vma:  # or the inner gradient of the replicated kernels would be summed over the devices
                kernels = jax.lax.pcast(kernels, "data", to="varying")
            return jax.lax.pmean(jax.grad(lambda k: mean_loss(conv, k, tasks))(kernels), "data")
        sharded = jax.shard_map(gradient, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=check_vma)
        for got, want in zip(jax.jit(sharded)(kernels, tasks), expected):
            ratio = float(jnp.vdot(got, want) / jnp.vdot(want, want))
            error = float(jnp.max(jnp.abs(got - want)) / jnp.max(jnp.abs(want)))
            assert abs(ratio - 1) < 1e-5 and error < 1e-4, (form, check_vma, ratio, error)
print("devices", jax.device_count())
"""


@pytest.mark.slow
def test_gradient_in_shard_map_is_not_n_times_too_large():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    result = subprocess.run(
        [sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "devices 8" in result.stdout


@pytest.mark.parametrize(
    ("backend", "num_steps", "plan"),
    [
        ("cpu", 10, Plan("three_forms", "map", scan=True)),
        ("cpu", 50_000, Plan("three_forms", "map", scan=False)),
        ("gpu", 10, Plan("native", "vmap", scan=True)),
        ("tpu", 50_000, Plan("native", "vmap", scan=True)),
    ],
)
def test_choose(backend, num_steps, plan):
    assert choose(backend, num_steps) == plan
    assert plan.convolution in CONVOLUTIONS


def test_over_tasks_stacks_results():
    tasks = {"x": jnp.arange(6.0).reshape(3, 2)}
    for task_loop in ("map", "vmap"):
        total, double = over_tasks(lambda task: (task["x"].sum(), 2 * task["x"]), tasks, task_loop)
        np.testing.assert_array_equal(total, [1.0, 5.0, 9.0])
        np.testing.assert_array_equal(double, 2 * tasks["x"])
