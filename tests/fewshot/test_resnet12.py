"""ResNet-12: the official forward and backward pass, its shapes, the padded pooling, and the inner loops around it."""

import functools
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fewshot import adaptation, cxgrad, maml
from fewshot.adaptation import InnerLoop, Task
from fewshot.convolution import CONVOLUTIONS
from fewshot.resnet12 import ResNet12, padded_max_pool
from fewshot.train import Recipe, init
from tests.common.toys import running
from tests.fewshot import cli, official, trajectory

GOLDEN = "resnet12_forward"


def golden_weights() -> dict[str, np.ndarray]:
    """{official name: array}, made by the formula of the golden file."""
    data, weights = official.golden(GOLDEN), {}
    for name, text in zip(data["param_names"], data["param_shapes"], strict=True):
        shape = tuple(int(size) for size in re.findall(r"\d+", str(text)))
        v = np.random.default_rng(zlib.crc32(str(name).encode())).standard_normal(shape)
        if "norm_layer.weight" in name:
            v = 1 + 0.1 * v
        elif v.ndim == 1:
            v = 0.1 * v
        else:
            v = v / np.sqrt(np.prod(shape[1:]))
        weights[str(name)] = v.astype(np.float32)
    return weights


def test_forward_and_backward_equal_official_float64():
    check_forward_and_backward(np.float64, 1e-9, "native")


def test_forward_and_backward_equal_official_float32():
    """In a process of its own, which makes the programs that users get: `common.cpu_fusions`, which the other families
    ask for, rounds otherwise, so that a leaky ReLU at its kink goes the other way."""
    running.run_program(
        "import numpy as np; from tests.fewshot import test_resnet12\n"
        "test_resnet12.check_forward_and_backward(np.float32, 1e-4, 'three_forms')"
    )


def check_forward_and_backward(dtype, tolerance, conv):
    data = official.golden(GOLDEN)
    weights = {official.path(name): official.layout(official.path(name), w) for name, w in golden_weights().items()}
    params = official.cast(official.nested(weights), dtype)
    images, labels = official.images(data["x"]).astype(dtype), jnp.asarray(data["y"])
    network = ResNet12(5, conv=CONVOLUTIONS[conv])

    def loss(params, images):
        output, inside = network.apply({"params": params}, images, mutable=["intermediates"])
        blocks = {name: leaf[0] for name, leaf in inside["intermediates"].items()}
        return maml.cross_entropy(output.logits, labels), (output, blocks)

    with jax.enable_x64(dtype is np.float64):
        (value, (output, blocks)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, images)
    gradients = trajectory.flat(gradient)
    assert gradients.keys() == weights.keys()
    names = [official.path(str(name)) for name in data["grad_norm_names"]]
    pairs = {
        "logits": (output.logits, data["logits"]),
        "loss": (value, data["loss"]),
        "pooled_features": (output.features, data["pooled_features"]),
        "grad_norm": (np.array([np.linalg.norm(gradients[name]) for name in names]), data["grad_norm"]),
    }
    for i in range(4):
        pairs[f"block{i}_first8"] = (blocks[f"block{i}_output"][..., :8], official.images(data[f"block{i}_first8"]))
    for key in (key for key in data if key.startswith("grad/")):
        path = official.path(key.removeprefix("grad/"))
        pairs[key] = (gradients[path], official.layout(path, data[key]))
    inputs = ("x", "y", "param_names", "param_shapes", "grad_norm_names")
    assert pairs.keys() == data.keys() - set(inputs)
    trajectory.assert_close(pairs, tolerance, tolerance)


def test_parameters_are_the_official_ones_layer_by_layer():
    data = official.golden(GOLDEN)
    images = jax.ShapeDtypeStruct((6, 84, 84, 3), jnp.float32)
    network = ResNet12(5)
    params = jax.eval_shape(lambda x: network.init(jax.random.key(0), x)["params"], images)
    ours = {path: leaf.shape for path, leaf in trajectory.flat(params).items()}
    expected = {official.path(name): official.layout(official.path(name), w) for name, w in golden_weights().items()}
    assert ours == {path: array.shape for path, array in expected.items()}
    assert len(ours) == len(data["param_names"]) == 50

    output, inside = jax.eval_shape(
        lambda params, x: network.apply({"params": params}, x, mutable=["intermediates"]), params, images
    )
    sides = [inside["intermediates"][f"block{i}_output"][0].shape for i in range(4)]
    assert sides == [(6, 42, 42, 64), (6, 21, 21, 128), (6, 11, 11, 256), (6, 11, 11, 512)]
    assert output.features.shape == (6, 512)
    assert len(output.moments) == 16


@pytest.mark.parametrize(("size", "expected"), [(21, 11), (6, 4), (1, 1)])
def test_padded_pooling_rounds_up_and_its_border_is_never_the_maximum(size, expected):
    x = -1 - jax.random.uniform(jax.random.key(0), (2, size, size, 3))
    y = padded_max_pool(x)
    assert y.shape == (2, expected, expected, 3)
    assert bool(jnp.isfinite(y).all())
    assert bool((y < 0).all())
    # The first window holds the corner alone.
    np.testing.assert_array_equal(y[:, 0, 0], x[:, 0, 0])
    gradient = jax.grad(lambda x: padded_max_pool(x).sum())(x)
    assert gradient.sum() == y.size


def test_scale_factors_go_block_by_block_with_the_shortcut_last():
    params = small_problem()[0]["net"]
    theta, omega = maml.split_parameters(params, "all")
    order = [f"block{i}/{layer}/kernel" for i in range(4) for layer in ("conv1", "conv2", "conv3", "shortcut")]
    assert cxgrad.scaled_layers(theta) == order
    assert theta.keys() == {*order, "head/kernel", "head/bias"}
    assert all("norm" in path for path in omega)
    assert set(maml.split_parameters(params, "backbone")[0]) == set(order)


@pytest.mark.slow
def test_each_inner_step_has_its_own_row_of_norm_parameters_and_given_moments_are_used():
    network = ResNet12(5, 2, norm_steps=3)
    images = jax.random.normal(jax.random.key(0), (5, 16, 16, 1))
    variables = jax.jit(network.init)(jax.random.key(1), images)
    assert variables["params"]["block1"]["norm_shortcut"]["scale"].shape == (3, 4)
    changed = jax.tree.map(lambda leaf: leaf, variables)
    apply = jax.jit(network.apply)
    shortcut = changed["params"]["block1"]["norm_shortcut"]
    shortcut["scale"] = shortcut["scale"].at[1].set(jnp.array([0.1, 2.0, -1.0, 3.0]))
    outputs = [[apply(v, images, step) for v in (variables, changed)] for step in range(3)]
    assert [bool(jnp.array_equal(a.logits, b.logits)) for a, b in outputs] == [True, False, True]
    together = outputs[0][0]
    alone = apply(variables, images[:1], 0, together.moments)
    np.testing.assert_allclose(alone.logits, together.logits[:1], rtol=1e-4, atol=1e-5)


# --- inner loops ----------------------------------------------------------------------------------------------------

SMALL = ResNet12(5, 2, conv=CONVOLUTIONS["patches"])


@functools.cache
def small_problem():
    random = np.random.default_rng(0)
    params = {
        "net": jax.jit(SMALL.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))["params"],
        "generator": cxgrad.init_generator(jax.random.key(1), 6, 16),
    }
    labels = jnp.arange(5)
    images = [jnp.asarray(random.random((5, 16, 16, 1), np.float32)) for _ in range(2)]
    return params, Task(images[0], labels, images[1], labels)


def meta_gradient(spec: InnerLoop):
    params, task = small_problem()

    def loss(params):
        return adaptation.task_loss(spec, SMALL.apply, params, task)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.mark.slow
def test_second_order_gradient_is_the_same_with_and_without_recomputation(little_optimization):
    results = [meta_gradient(InnerLoop("cxgrad", 2, 0.01, context_size=6, remat=remat)) for remat in (False, True)]
    ((loss, trace), gradient), ((again, _), recomputed) = results
    assert trace["factors"].shape == (2, 16)
    assert len(trace["gradient_norm"]) == 18
    np.testing.assert_allclose(loss, again, rtol=1e-6)
    for path, leaf in trajectory.flat(gradient).items():
        other = trajectory.flat(recomputed)[path]
        assert np.abs(leaf - other).max() <= 1e-4 * np.abs(leaf).max() + 1e-7, path
    assert all(np.abs(leaf).max() > 0 for path, leaf in trajectory.flat(gradient["net"]).items() if "kernel" in path)


@pytest.mark.parametrize(("adapted", "moving"), [("head", 2), ("backbone", 16)])
def test_head_or_backbone_alone_adapts(adapted, moving, little_optimization):
    params, task = small_problem()
    spec = InnerLoop("maml", 1, 0.1, adapted=adapted, first_order=True)
    theta, omega = maml.split_parameters(params["net"], adapted)
    adapt = functools.partial(adaptation.adapt, spec, SMALL.apply)
    after = jax.jit(adapt)(params, task.support_images, task.support_labels)
    assert len(theta) == moving == len(after.theta)
    assert all(np.abs(after.theta[path] - theta[path]).max() > 0 for path in theta)
    assert after.omega.keys() == omega.keys()


def test_running_moments_of_every_norm_layer_are_kept():
    network = ResNet12(5, 2, norm_steps=3)
    recipe = Recipe(network, InnerLoop("maml", 3, 0.1), optax.sgd(0.1), 1, None, None)
    state = jax.eval_shape(lambda key: init(recipe, (16, 16, 1), {}, key), jax.random.key(0))
    names = {f"block{i}/{norm}" for i in range(4) for norm in ("norm1", "norm2", "norm3", "norm_shortcut")}
    assert state.model_state.keys() == names
    assert state.model_state["block2/norm_shortcut"]["mean"].shape == (3, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields"), [("cxgrad", {}), ("maml", {"learned_inner_rates": True, "per_step_norm": True})]
)
def test_smoke_run(name, fields, tmp_path):
    cli.run(f"fewshot/configs/{name}.py:smoke_resnet12", tmp_path / "run", filters=2, **fields)
    lines = [line for line in running.metrics(tmp_path / "run") if line["kind"] == "train"]
    assert len(lines) == 4
    if name == "cxgrad":
        assert all(line["gamma_15"] > 0 for line in lines)
        assert "gamma_16" not in lines[0]
