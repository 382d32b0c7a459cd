"""The decomposition and its derivative: golden files, finite differences, rank deficiency, back ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill import svd
from tests.distill import golden
from tests.distill.golden import GRADIENTS, close, flip

REGIMES = {"tall": (7, 4), "wide": (4, 7), "square": (5, 5)}


def flipped(decomposition, stored_v):
    sign = np.sign(np.sum(np.asarray(decomposition.v) * np.asarray(stored_v), axis=1))
    return svd.SVD(decomposition.s, decomposition.u * sign[:, None], decomposition.v * sign[:, None])


@pytest.mark.parametrize("backend", ["svd", "eigen"])
def test_golden_decompositions(backend):
    stored = golden.load("kd_svd")
    for kind in ("svd", "eid"):
        for i in range(4):
            full = svd.decompose(svd.feature_matrix(stored[f"student_fm{i}"]), backend)
            found = flipped(svd.truncate(full, 4), stored[f"{kind}{i}_V_student"])
            for part, name in zip(found, "sUV", strict=True):
                close(part, stored[f"{kind}{i}_{name}_student"], name=f"{kind}{i} {name}")
            teacher = svd.leading_triplet(svd.feature_matrix(stored[f"teacher_fm{i}"]), backend, canonical=False)
            expected = stored[f"{kind}{i}_V_teacher"]
            close(flip(teacher.v, expected), expected, name=f"{kind}{i} teacher")
    stored = golden.load("sskd_svd")
    for i in range(3):
        full = svd.decompose(svd.feature_matrix(stored[f"student_fm{i}"]), backend)
        for part, name in zip(flipped(full, stored[f"full_V{i}"]), "sUV", strict=True):
            close(part, stored[f"full_{name}{i}"], name=f"sskd {name}{i}")


def test_golden_toolbox_derivative():
    stored = golden.load("kd_svd")
    for i in range(2):
        given = svd.SVD(stored[f"vjp{i}_s"], stored[f"vjp{i}_U"], stored[f"vjp{i}_V"])
        close(svd.truncated_svd_vjp(given, stored[f"vjp{i}_dV"]), stored[f"vjp{i}_dx"], GRADIENTS, f"vjp{i}")


def directional(x, direction, weights, gradient, backend, count):
    """(derivative by the rule, central difference) of Σ weights · V along a direction; signs are those at x."""
    signs = svd.canonical_sign(svd.thin_svd(x).v)[..., :count]

    def loss(x, how=gradient):
        v = svd.svd_right_vectors(x, count, how, backend)
        return jnp.sum(weights * v * svd.canonical_sign(v) * signs)

    step = 1e-6
    slope = jnp.sum(jax.grad(loss)(x) * direction)
    return slope, (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)


@pytest.mark.parametrize("backend", ["svd", "eigen"])
@pytest.mark.parametrize("gradient", ["exact", "paper"])
@pytest.mark.parametrize("regime", REGIMES)
def test_derivative_equals_finite_differences(float64, regime, gradient, backend):
    random = np.random.default_rng(1)
    rows, columns = REGIMES[regime]
    rank = min(rows, columns)  # at most 5, so that the paper's form cuts nothing off
    x, direction = (jnp.asarray(random.standard_normal((2, rows, columns))) for _ in range(2))
    weights = jnp.asarray(random.standard_normal((2, columns, rank)))
    slope, difference = directional(x, direction, weights, gradient, backend, rank)
    np.testing.assert_allclose(slope, difference, rtol=1e-6)


def test_leading_vectors_alone_follow_the_exact_derivative(float64):
    """Only the first vectors are used, while the map has more; the paper's form then differs, as it says."""
    random = np.random.default_rng(2)
    for shape in ((2, 9, 7), (2, 7, 9)):
        x, direction = (jnp.asarray(random.standard_normal(shape)) for _ in range(2))
        weights = jnp.asarray(random.standard_normal((2, shape[2], 2)))
        slope, difference = directional(x, direction, weights, "exact", "eigen", 2)
        np.testing.assert_allclose(slope, difference, rtol=1e-6)
        slope, difference = directional(x, direction, weights, "paper", "eigen", 2)
        assert abs(slope - difference) > 1e-3 * abs(difference)


def test_published_derivative_is_zero_for_tall_maps_alone():
    random = np.random.default_rng(3)
    for (rows, columns), zero in (((9, 6), True), ((6, 6), True), ((6, 9), False)):
        full = svd.thin_svd(jnp.asarray(random.standard_normal((2, rows, columns)), jnp.float32))
        dx = svd.truncated_svd_vjp(full, jnp.ones_like(full.v), "published")
        assert bool(jnp.all(dx == 0)) == zero


def special_maps():
    """Maps without full rank, as a ReLU leaves them: zeros, one position, one channel, equal positions, rank 2."""
    random = np.random.default_rng(4)
    one = np.abs(random.standard_normal((6, 1))) @ np.abs(random.standard_normal((1, 5)))
    two = one + np.outer(np.eye(6)[0], np.eye(5)[2])
    maps = [np.zeros((6, 5)), np.outer(np.eye(6)[1], np.ones(5)), np.outer(np.ones(6), np.eye(5)[3]), one, two]
    stacked = jnp.asarray(np.stack([*maps, np.eye(6, 5)]), jnp.float32)  # the last: all singular values equal
    return {"tall": stacked, "wide": jnp.swapaxes(stacked, 1, 2)}


@pytest.mark.parametrize("backend", ["svd", "eigen"])
@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_rank_deficiency_is_finite(shape, backend):
    x = special_maps()[shape]
    for gradient in svd.GRADIENTS:

        def loss(x, gradient=gradient):
            v = svd.svd_right_vectors(x, 4, gradient, backend)
            return jnp.einsum("bcr,r,c->", v, jnp.arange(1.0, 5), jnp.cos(jnp.arange(v.shape[1])))

        value, slope = jax.value_and_grad(loss)(x)
        assert jnp.isfinite(value)
        assert jnp.all(jnp.isfinite(slope))
        assert jnp.all(slope[0] == 0)
        assert jnp.abs(slope).max() < 1e3  # nothing of the size of 1 / round-off


@pytest.mark.parametrize("top1", svd.LEADING)
def test_leading_triplet(top1):
    """Of ReLU-like maps, of plain normal ones, and of those without full rank, whatever the way."""
    random = np.random.default_rng(5)
    for shape in ((3, 36, 8), (3, 8, 36), (3, 1, 7), (3, 7, 1)):
        for x in (np.maximum(random.standard_normal(shape) + 0.5, 0), np.abs(random.standard_normal(shape))):
            x = jnp.asarray(x, jnp.float32)
            s, u, v = svd.leading_triplet(x, top1)
            truth = np.linalg.svd(np.asarray(x, np.float64), compute_uv=True)
            np.testing.assert_allclose(s[:, 0], truth[1][:, 0], rtol=1e-5)
            expected = jnp.asarray(np.swapaxes(truth[2], 1, 2)[..., :1])
            close(v, expected * svd.canonical_sign(expected))
            np.testing.assert_allclose(jnp.einsum("bkr,bkc,bcr->br", u, x, v), s, rtol=1e-5)
    for x in special_maps().values():
        s, u, v = svd.leading_triplet(x, top1)
        assert all(bool(jnp.all(jnp.isfinite(part))) for part in (s, u, v))
        np.testing.assert_allclose(s[:, 0], np.linalg.svd(np.asarray(x), compute_uv=False)[:, 0], rtol=1e-5)


def test_canonical_sign_makes_the_largest_entry_positive():
    v = jnp.asarray(np.random.default_rng(6).standard_normal((4, 9, 3)), jnp.float32)
    signed = v * svd.canonical_sign(v)
    largest = jnp.take_along_axis(signed, jnp.argmax(jnp.abs(v), axis=1, keepdims=True), axis=1)
    assert jnp.all(largest > 0)
    np.testing.assert_array_equal(signed, -v * svd.canonical_sign(-v))


def test_vectors_are_taps_of_one_position():
    x = jnp.asarray(np.random.default_rng(7).standard_normal((3, 5)), jnp.float32)
    v = svd.svd_right_vectors(svd.feature_matrix(x), 4)
    assert v.shape == (3, 5, 1)
    close(flip(v, x[..., None]), svd.l2_normalize(x)[..., None])


def test_wrong_names_and_shapes():
    x = jnp.ones((2, 3, 4))
    with pytest.raises(ValueError, match=r"svd_gradient is 'papr', but must be one of paper"):
        svd.truncated_svd_vjp(svd.thin_svd(x), jnp.ones((2, 4, 3)), "papr")
    with pytest.raises(ValueError, match="svd backend is 'qr'"):
        svd.decompose(x, "qr")
    with pytest.raises(ValueError, match="top1 is 'powr'"):
        svd.leading_triplet(x, "powr")
    with pytest.raises(ValueError, match=r"a tap has shape \(2, 3, 4\)"):
        svd.feature_matrix(x)
