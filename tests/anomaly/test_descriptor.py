"""The descriptor against the official code, and its fast form against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly import descriptor
from anomaly.descriptor import PatchDescriptor
from tests.anomaly import golden


def random_taps(sizes, channels, batch=2, seed=0):
    random = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(random.standard_normal((batch, *size, width)), jnp.float32)
        for size, width in zip(sizes, channels, strict=True)
    )


@pytest.mark.parametrize(("name", "factor", "divide"), [("res18", 1, False), ("effnet_b5", 2, True)])
def test_golden_descriptor(name, factor, divide):
    expected = golden.load("descriptor").under(f"{name}/")
    taps = [jnp.asarray(golden.nhwc(expected[f"p{i}"])) for i in range(3)]
    channels = [tap.shape[-1] for tap in taps]
    width = descriptor.descriptor_width(channels, int(expected["gamma_d"]), factor)
    params = golden.descriptor_params(f"descriptor_{name}", width, sum(channels) + 2)
    np.testing.assert_array_equal(params["kernel"].T[:8], expected["layer.conv.weight_first8"])
    np.testing.assert_array_equal(params["bias"], expected["layer.conv.bias"])

    @jax.jit
    def values(params, taps):
        pooled = descriptor.pool_taps(taps, divide)
        outs = [PatchDescriptor(width, commuted).apply({"params": params}, pooled) for commuted in (False, True)]
        return descriptor.aggregate_taps(pooled)[..., expected["sampled_channels"]], outs

    sampled, outs = values(params, taps)
    np.testing.assert_allclose(sampled, golden.nhwc(expected["pooled_concat_sampled"]), rtol=0, atol=5e-6)
    height, width_of_map = taps[0].shape[1:3]
    coordinates = descriptor.coordinate_channels(height, width_of_map)
    np.testing.assert_allclose(coordinates, golden.nhwc(expected["coords"])[0], rtol=0, atol=5e-6)
    for out in outs:
        np.testing.assert_allclose(out, golden.nhwc(expected["out"]), rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    "sizes", [((8, 8), (4, 4), (2, 2)), ((7, 5), (4, 3), (2, 2)), ((6, 1), (3, 1), (2, 1)), ((1, 4), (1, 2), (1, 1))]
)
def test_convolution_commutes_with_the_resize(sizes):
    taps = random_taps(sizes, (3, 5, 7))
    plain, fast = PatchDescriptor(6, False), PatchDescriptor(6, True)

    @jax.jit
    def values(taps):
        params = plain.init(jax.random.key(0), taps)
        return plain.apply(params, taps), fast.apply(params, taps)

    out, other = values(taps)
    assert out.shape == (2, *sizes[0], 6)
    assert bool(jnp.isfinite(out).all())
    np.testing.assert_allclose(out, other, rtol=0, atol=2e-6)


def test_pooling_divides_by_nine_at_the_border_too():
    pooled = descriptor.pool_taps((jnp.ones((1, 4, 4, 1)),))[0][0, :, :, 0]
    np.testing.assert_allclose(pooled[0, 0], 4 / 9)
    np.testing.assert_allclose(pooled[0, 1], 6 / 9)
    np.testing.assert_allclose(pooled[1, 1], 1, rtol=1e-6)


@settings(max_examples=8, deadline=None)
@given(small=st.integers(1, 9), large=st.integers(1, 24))
def test_resize_is_half_pixel_bilinear(small, large):
    large = max(small, large)
    row = np.random.default_rng(small).standard_normal(small).astype(np.float32)
    got = descriptor.resize_map(jnp.asarray(row)[None, :, None, None], large, 1)[0, :, 0, 0]
    places = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0, small - 1)
    np.testing.assert_allclose(got, np.interp(places, np.arange(small), row), rtol=0, atol=2e-6)


def test_initialisation_is_that_of_pytorch():
    taps = random_taps(((4, 4), (2, 2)), (20, 78))
    params = jax.jit(PatchDescriptor(64).init)(jax.random.key(3), taps)["params"]
    bound = 100**-0.5
    for leaf in (params["kernel"], params["bias"]):
        assert 0.9 * bound < float(jnp.max(jnp.abs(leaf))) <= bound
        np.testing.assert_allclose(jnp.mean(jnp.square(leaf)), bound**2 / 3, rtol=0.3)
    assert params["kernel"].shape == (100, 64)


def test_widths():
    assert descriptor.descriptor_width((256, 512, 1024), 1) == 1792
    assert descriptor.descriptor_width((200, 192, 176), 16, 2) == 71
    assert descriptor.descriptor_width((64, 128, 256), 16) == 28
