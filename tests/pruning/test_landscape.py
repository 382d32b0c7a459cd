"""Hessian products, Lanczos and the cut through the surface, against a dense Hessian in 64 bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.errors import UserError
from pruning import landscape
from tests.pruning import networks
from tests.pruning.networks import jit

KEY = jax.random.key(0)


def cross_entropy(params, data):
    x, y = data
    logits = jnp.tanh(x @ params["W1"] + params["b1"][None]) @ params["W2"] + params["b2"][None]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1))


@pytest.fixture(scope="module")
def golden():
    return networks.golden("landscape")


def network(golden, dtype):
    params = {name: jnp.asarray(golden[name], dtype) for name in ("W1", "b1", "W2", "b2")}
    return params, (jnp.asarray(golden["x"], dtype), jnp.asarray(golden["y"]))


def flat(params):
    return np.concatenate([np.ravel(params[name]) for name in ("W1", "b1", "W2", "b2")])


def split(vector, params):
    ends = np.cumsum([params[name].size for name in ("W1", "b1", "W2", "b2")])[:-1]
    parts = np.split(np.asarray(vector), ends)
    names = ("W1", "b1", "W2", "b2")
    return {
        n: jnp.asarray(part.reshape(params[n].shape), params[n].dtype) for n, part in zip(names, parts, strict=True)
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_golden(golden, dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        params, data = network(golden, dtype)
        vector = split(golden["hvp_vector"], params)

        loss, gradient = jit(jax.value_and_grad(cross_entropy))(params, data)
        product = jit(lambda *arguments: landscape.hvp(cross_entropy, *arguments))(params, data, vector)
        extremes = landscape.hessian_extremes(cross_entropy, params, data, KEY, 64)
        close = {"rtol": 0, "atol": tolerance}
        np.testing.assert_allclose(loss, golden["loss"], **close)
        np.testing.assert_allclose(flat(gradient), golden["grad"], **close)
        np.testing.assert_allclose(flat(product), golden["hvp"], **close)
        np.testing.assert_allclose(extremes.smallest, golden["lambda_min"], **close)
        np.testing.assert_allclose(extremes.largest, golden["lambda_max"], **close)
        number = landscape.condition_number(extremes)
        np.testing.assert_allclose(number, golden["condition_number"], **close)
        assert extremes.smallest.dtype == dtype


def test_estimates_grow_to_the_extremes(golden):
    matrix = np.diag(golden["eigenvalues"]).astype(np.float32)
    start = jax.random.normal(KEY, (64,))
    found = [landscape.lanczos(lambda v: matrix @ v, start, n) for n in (5, 30)]
    assert found[0].largest < found[1].largest
    assert found[0].smallest > found[1].smallest
    assert float(found[1].smallest) == pytest.approx(golden["lambda_min"], abs=1e-4)
    assert float(found[1].largest) == pytest.approx(golden["lambda_max"], abs=1e-4)


@pytest.mark.parametrize(
    "eigenvalues", [(2.0, 2.0, 2.0, 5.0, 5.0, 9.0), (-3.0,) * 6, (-9.0, -2.0, -2.0, -1.0, -1.0, -1.0)]
)
def test_an_exhausted_space_brings_no_eigenvalue_of_its_own(eigenvalues):
    """Fewer different eigenvalues than iterations, none of them 0."""
    orthogonal = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    matrix = jnp.asarray(orthogonal @ np.diag(eigenvalues) @ orthogonal.T, jnp.float32)
    extremes = landscape.lanczos(lambda v: matrix @ v, jnp.arange(1.0, 7.0), 6)
    assert float(extremes.smallest) == pytest.approx(min(eigenvalues), abs=1e-4)
    assert float(extremes.largest) == pytest.approx(max(eigenvalues), abs=1e-4)


@pytest.mark.parametrize("iterations", [0, 7])
def test_iterations_that_cannot_be(iterations):
    with pytest.raises(ValueError, match=f"iterations is {iterations}"):
        landscape.lanczos(lambda v: v, jnp.ones(6), iterations)


def test_directions_are_as_long_as_the_filters():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 5)).at[..., 2].set(0)
    params = {"conv": {"kernel": kernel}, "bn": {"scale": jnp.ones(5)}}
    direction = landscape.filter_normalised_direction(params, jax.random.key(1))
    lengths = [np.linalg.norm(np.asarray(x).reshape(-1, 5), axis=0) for x in (kernel, direction["conv"]["kernel"])]
    np.testing.assert_allclose(lengths[1], lengths[0], rtol=1e-5)
    assert lengths[1][2] == 0
    assert not np.any(direction["bn"]["scale"])


def test_surface(golden, tmp_path):
    params, data = network(golden, "float32")
    side, losses = landscape.surface(cross_entropy, params, data, jax.random.key(0), points=3, reach=0.5)
    np.testing.assert_array_equal(side, [-0.5, 0, 0.5])
    assert losses[1, 1] == pytest.approx(float(golden["loss"]), abs=1e-6)
    one, two = (landscape.filter_normalised_direction(params, key) for key in jax.random.split(jax.random.key(0)))
    corner = jax.tree.map(lambda p, a, b: p - 0.5 * a + 0.5 * b, params, one, two)
    assert losses[0, 2] == pytest.approx(float(cross_entropy(corner, data)), abs=1e-6)
    landscape.draw_surface(side, losses, tmp_path / "figures" / "surface.svg", "loss around the weights")
    assert (tmp_path / "figures" / "surface.png").is_file()
    assert "second direction" in (tmp_path / "figures" / "surface.svg").read_text()


@pytest.mark.parametrize("bad", [{"points": 4}, {"points": 1}, {"reach": 0.0}, {"reach": float("nan")}])
def test_surface_refuses(golden, bad):
    with pytest.raises(UserError, match="odd number of points"):
        landscape.surface(cross_entropy, *network(golden, "float32"), jax.random.key(0), **bad)
