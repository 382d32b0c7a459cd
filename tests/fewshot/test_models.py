"""Conv4: the official forward and backward pass, its variants, and the published parameter count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import maml, models
from fewshot.convolution import CONVOLUTIONS
from fewshot.models import Conv4
from tests.fewshot import official, trajectory

GOLDEN = "conv4_forward"
FINAL_MAP = (2, 2)


def conv4_comparisons(dtype, conv, monkeypatch):
    """{key: (ours, official)}; what is inside the network is seen where it enters the pooling."""
    data = official.golden(GOLDEN)
    params = official.cast(official.nested(official.group(data, "w/", FINAL_MAP)), dtype)
    images, labels = official.images(data["x"]).astype(dtype), jnp.asarray(data["y"])
    before_pooling = []
    monkeypatch.setattr(models, "max_pool", lambda x, pool=models.max_pool: (before_pooling.append(x), pool(x))[1])

    def loss(params, images):
        before_pooling.clear()
        output = Conv4(5, 8, conv=CONVOLUTIONS[conv]).apply({"params": params}, images)
        return maml.cross_entropy(output.logits, labels), (output, list(before_pooling))

    with jax.enable_x64(dtype is np.float64):
        gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        (value, (output, blocks)), (parameter_gradient, image_gradient) = gradients(params, images)
    pairs = {
        "logits": (output.logits, data["logits"]),
        "loss": (value, data["loss"]),
        "features": (output.features, official.flat_features(data["features"], FINAL_MAP)),
        "grad/x": (image_gradient, official.images(data["grad/x"])),
    }
    for i in (1, 2, 3):
        pairs[f"block{i}_prepool"] = (blocks[i], official.images(data[f"block{i}_prepool"]))
    ours = trajectory.flat(parameter_gradient)
    for path, key in official.keys(data, "grad/w/").items():
        pairs[key] = (ours[path], official.layout(path, data[key], FINAL_MAP))
    return pairs


@pytest.mark.parametrize("conv", CONVOLUTIONS)
@pytest.mark.parametrize(("dtype", "values", "gradients"), [(np.float64, 1e-9, 1e-9), (np.float32, 1e-5, 1e-4)])
def test_forward_and_backward_equal_official(conv, dtype, values, gradients, monkeypatch):
    pairs = conv4_comparisons(dtype, conv, monkeypatch)
    assert set(pairs) == {key for key in official.golden(GOLDEN) if not key.startswith(("x", "y", "w/"))}
    trajectory.assert_close(pairs, values, gradients)


def shapes(network, size=84, channels=3):
    """Parameter shapes and output shapes without computing anything."""
    images = jax.ShapeDtypeStruct((6, size, size, channels), jnp.float32)
    params = jax.eval_shape(lambda x: network.init(jax.random.key(0), x)["params"], images)
    output = jax.eval_shape(lambda params, x: network.apply({"params": params}, x), params, images)
    return {path: leaf.shape for path, leaf in trajectory.flat(params).items()}, output


def test_published_network_has_its_exact_parameters():
    params, output = shapes(Conv4(5))
    kernels = [(3, 3, 3, 48)] + 3 * [(3, 3, 48, 48)]
    assert [params[f"conv{i}/kernel"] for i in range(4)] == kernels
    assert params["head/kernel"] == (1200, 5)
    # 27*48 + 3*9*48*48 kernels, 4*2*48 norms, 1200*5 + 5 head
    assert sum(int(np.prod(shape)) for shape in params.values()) == 1296 + 62208 + 384 + 6005
    assert output.logits.shape == (6, 5)
    assert output.features.shape == (6, 1200)
    assert set(output.moments) == {"norm0", "norm1", "norm2", "norm3"}


def test_layer_norm_learns_one_shift_per_value_and_no_scale():
    params, output = shapes(Conv4(5, 8, norm="layer"), size=28)
    assert [params[f"norm{i}/shift"] for i in range(4)] == [(28, 28, 8), (14, 14, 8), (7, 7, 8), (3, 3, 8)]
    assert not any(path.endswith("scale") for path in params)
    assert output.moments == {}


def test_strided_network_ends_in_a_global_average():
    params, output = shapes(Conv4(5, 8, pooling=False), size=28)
    assert output.features.shape == (6, 8)
    assert params["head/kernel"] == (8, 5)


def test_convolution_bias_is_an_option():
    params, _ = shapes(Conv4(5, 8, conv_bias=True), size=28)
    assert params["conv3/bias"] == (8,)


def test_layer_norm_normalises_each_image():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (4, 5, 5, 6))
    y = models.layer_norm(x, jnp.zeros((5, 5, 6)))
    np.testing.assert_allclose(y.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axis=(1, 2, 3)), 1, atol=1e-4)


def test_each_inner_step_has_its_own_row_of_norm_parameters():
    network = Conv4(5, 4, norm_steps=3)
    images = jax.random.normal(jax.random.key(0), (5, 16, 16, 3))
    apply, params = jax.jit(network.apply), jax.jit(network.init)(jax.random.key(1), images)["params"]
    assert params["norm2"]["scale"].shape == (3, 4)
    changed = jax.tree.map(jnp.copy, params)
    changed["norm2"]["scale"] = changed["norm2"]["scale"].at[1].set(jnp.array([0.1, 2.0, -1.0, 3.0]))
    for step in range(3):
        before, after = (apply({"params": p}, images, step).logits for p in (params, changed))
        assert bool(jnp.array_equal(before, after)) == (step != 1)


def test_max_pool_sends_the_gradient_of_a_tie_to_one_value():
    x = jnp.zeros((1, 4, 5, 1))
    gradient = jax.grad(lambda x: models.max_pool(x).sum())(x)
    assert gradient.sum() == 4
    assert ((gradient == 0) | (gradient == 1)).all()
    assert (gradient[:, :, 4] == 0).all()


def test_given_moments_replace_the_batch_s_own():
    x = jax.random.normal(jax.random.key(0), (6, 3, 3, 2))
    _, moments = models.batch_norm(x, jnp.ones(2), jnp.zeros(2))
    alone, _ = models.batch_norm(x[:1], jnp.ones(2), jnp.zeros(2), moments)
    together, _ = models.batch_norm(x, jnp.ones(2), jnp.zeros(2))
    np.testing.assert_allclose(alone, together[:1], rtol=1e-6)
    assert moments.count == 54
