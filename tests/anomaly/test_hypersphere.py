"""Distances and loss against the official code, finite differences, and the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anomaly.hypersphere import coupled_hypersphere_loss, nearest_sq_distances, pairwise_sq_distances
from tests.anomaly import golden

CASES = ("small_r", "both_active", "compressed_bank")


def loss_of(expected, phi, radius, chunk=0):
    count = int(expected["K"] + expected["J"])
    nearest = nearest_sq_distances(phi, jnp.asarray(expected["C"].T, phi.dtype), count, chunk)
    return coupled_hypersphere_loss(
        nearest, radius, int(expected["K"]), float(expected["nu"]), float(expected["alpha"])
    )


def golden_values(expected, phi, radius):
    """(loss and its parts, gradients to φ and r, distances), compiled as one program."""

    def values(phi, radius):
        gradients = jax.grad(lambda phi, r: loss_of(expected, phi, r).total, argnums=(0, 1))(phi, radius)
        nearest = nearest_sq_distances(phi, jnp.asarray(expected["C"].T, phi.dtype), 6)
        return loss_of(expected, phi, radius), gradients, nearest

    return jax.jit(values)(phi, radius)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_golden_loss(name, wide):
    expected = golden.load("loss").under(f"{name}/")
    with jax.enable_x64(wide):
        dtype = jnp.float64 if wide else jnp.float32
        phi, radius = jnp.asarray(expected["phi"], dtype), jnp.asarray(expected["r"], dtype)
        parts, gradients, nearest = golden_values(expected, phi, radius)
        for value, key in zip(parts, ("loss", "l_att", "l_rep"), strict=True):
            np.testing.assert_allclose(value, expected[key], rtol=1e-5)
        for value, key in zip(gradients, ("grad_phi", "grad_r"), strict=True):
            np.testing.assert_allclose(value, expected[key], rtol=0, atol=1e-5 * np.abs(expected[key]).max())
        np.testing.assert_allclose(nearest, expected["sq_dist_topk"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 5, 16, 40])
def test_chunks_change_nothing(chunk):
    expected = golden.load("loss").under("both_active/")
    phi, radius = jnp.asarray(expected["phi"]), jnp.asarray(expected["r"])
    bank = jnp.asarray(expected["C"].T)

    @jax.jit
    def values(phi):
        distances = [nearest_sq_distances(phi, bank, 6, c) for c in (0, chunk)]
        return distances, [jax.grad(lambda phi, c=c: loss_of(expected, phi, radius, c).total)(phi) for c in (0, chunk)]

    (one, other), (whole, parts) = values(phi)
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)
    np.testing.assert_allclose(whole, parts, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_gradient_equals_that_of_all_distances_and_finite_differences(float64):
    random = np.random.default_rng(1)
    phi, bank = jnp.asarray(random.standard_normal((2, 7, 5))), jnp.asarray(random.standard_normal((11, 5)))
    weights = jnp.asarray(random.standard_normal((2, 7, 4)))

    def plain(phi):
        return jnp.sum(weights * -jax.lax.top_k(-pairwise_sq_distances(phi, bank), 4)[0])

    def fast(phi):
        return jnp.sum(weights * nearest_sq_distances(phi, bank, 4, 3))

    one, other = jax.jit(lambda phi: (jax.grad(plain)(phi), jax.grad(fast)(phi)))(phi)
    np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)

    def loss(step):
        """Along a random direction in φ and r."""
        nearest = nearest_sq_distances(phi + step * direction, bank, 6)
        return coupled_hypersphere_loss(nearest, 1.5 + 0.3 * step, 3, 1e-3, 0.1).total

    direction = jnp.asarray(random.standard_normal(phi.shape))
    step, both = 1e-6, jax.jit(jax.value_and_grad(loss))
    differences = (both(jnp.asarray(step))[0] - both(jnp.asarray(-step))[0]) / (2 * step)
    np.testing.assert_allclose(both(jnp.asarray(0.0))[1], differences, rtol=1e-7)


def test_no_gradient_to_the_bank():
    random = np.random.default_rng(2)
    phi, bank = (jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in ((1, 4, 3), (5, 3)))
    assert not jax.jit(jax.grad(lambda bank: jnp.sum(nearest_sq_distances(phi, bank, 2))))(bank).any()


def test_an_entry_of_the_bank_has_the_distance_zero_and_no_nan():
    bank = jnp.asarray(np.random.default_rng(3).standard_normal((64, 448)) * 7, jnp.float32)
    distances = jax.jit(nearest_sq_distances, static_argnums=2)(bank[None], bank, 1)
    assert float(jnp.min(distances)) >= 0
    assert bool(jnp.isfinite(jnp.sqrt(distances)).all())


def test_repulsion_begins_at_k_where_j_differs():
    distances = jnp.asarray([[[0.0, 1.0, 2.0, 3.0]]])
    loss = coupled_hypersphere_loss(distances, jnp.asarray(2.0), 1, 1.0, 0.5)
    np.testing.assert_allclose(loss.attraction, 0)
    np.testing.assert_allclose(loss.repulsion, (2.5 + 1.5 + 0.5) / 3)


def test_repulsion_is_zero_until_the_radius_exceeds_the_root_of_alpha():
    distances = jnp.zeros((1, 2, 6))
    assert coupled_hypersphere_loss(distances, jnp.asarray(0.316), 3, 1e-3, 0.1).repulsion == 0
    assert coupled_hypersphere_loss(distances, jnp.asarray(-0.32), 3, 1e-3, 0.1).repulsion > 0
