"""The decomposition and its derivative: golden files, finite differences, rank deficiency, back ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill import svd
from tests.distill import golden
from tests.distill.golden import GRADIENTS, close, compiled, flip

REGIMES = {"tall": (7, 4), "wide": (4, 7), "square": (5, 5)}


def test_golden_decompositions(backend):
    def decompositions(maps, teachers):
        full = [svd.decompose(svd.feature_matrix(x), backend) for x in maps]
        leading = [svd.leading_triplet(svd.feature_matrix(x), backend, canonical=False).v for x in teachers]
        return full, [svd.truncate(each, 4) for each in full], leading

    def compare(found, stored, names):
        turned = np.sign(np.sum(np.asarray(found.v) * np.asarray(stored[names.format("V")]), axis=1, keepdims=True))
        for part, sign, letter in zip(found, (1, turned, turned), "sUV", strict=True):
            close(part * sign, stored[names.format(letter)], name=names.format(letter))

    stored, other = golden.load("kd_svd"), golden.load("sskd_svd")
    maps = [stored[f"student_fm{i}"] for i in range(4)] + [other[f"student_fm{i}"] for i in range(3)]
    full, truncated, leading = compiled(decompositions)(maps, [stored[f"teacher_fm{i}"] for i in range(4)])
    for i in range(3):
        compare(full[4 + i], other, f"full_{{}}{i}")
    for kind in ("svd", "eid"):
        for i in range(4):
            compare(truncated[i], stored, f"{kind}{i}_{{}}_student")
            expected = stored[f"{kind}{i}_V_teacher"]
            close(flip(leading[i], expected), expected, name=f"{kind}{i} teacher")


def test_golden_toolbox_derivative():
    stored = golden.load("kd_svd")
    for i in range(2):
        given = svd.SVD(stored[f"vjp{i}_s"], stored[f"vjp{i}_U"], stored[f"vjp{i}_V"])
        close(np.einsum("bir,br,bjr->bij", given.u, given.s, given.v), stored[f"vjp{i}_x"], name=f"vjp{i} x")
        close(compiled(svd.truncated_svd_vjp)(given, stored[f"vjp{i}_dV"]), stored[f"vjp{i}_dx"], GRADIENTS, f"vjp{i}")


def slopes(shape, gradients, backend, count, seed=1):
    """[derivatives by each rule along a direction], and the central difference; signs are those at the point itself."""
    random = np.random.default_rng(seed)
    x, direction = (jnp.asarray(random.standard_normal((2, *shape))) for _ in range(2))
    weights = jnp.asarray(random.standard_normal((2, shape[1], count)))

    @compiled
    def all_slopes(x):
        signs = svd.canonical_sign(svd.thin_svd(x).v)[..., :count]

        def loss(x, gradient="exact"):
            v = svd.svd_right_vectors(x, count, gradient, backend)
            return jnp.sum(weights * v * svd.canonical_sign(v) * signs)

        step = 1e-6
        found = [jnp.sum(jax.grad(loss)(x, gradient) * direction) for gradient in gradients]
        return found, (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)

    return all_slopes(x)


@pytest.mark.parametrize("backend", ["svd", "eigen"])
@pytest.mark.parametrize("regime", REGIMES)
def test_derivative_equals_finite_differences(float64, regime, backend):
    rank = min(REGIMES[regime])  # at most 5, so that the paper's form cuts nothing off
    (exact, paper), difference = slopes(REGIMES[regime], ("exact", "paper"), backend, rank)
    np.testing.assert_allclose(exact, difference, rtol=1e-6)
    np.testing.assert_allclose(paper, difference, rtol=1e-6)


@pytest.mark.parametrize("shape", [(9, 7), (7, 9)])
def test_leading_vectors_alone_follow_the_exact_derivative(float64, shape):
    """Only the first vectors are used, while the map has more; the paper's form then differs, as it says."""
    (exact, paper), difference = slopes(shape, ("exact", "paper"), "eigen", 2, seed=2)
    np.testing.assert_allclose(exact, difference, rtol=1e-6)
    assert abs(paper - difference) > 1e-3 * abs(difference)


def test_published_derivative_is_zero_for_tall_maps_alone():
    random = np.random.default_rng(3)
    for (rows, columns), zero in (((9, 6), True), ((6, 6), True), ((6, 9), False)):
        u, s, vt = np.linalg.svd(random.standard_normal((2, rows, columns)).astype(np.float32), full_matrices=False)
        full = svd.SVD(*map(jnp.asarray, (s, u, np.swapaxes(vt, 1, 2))))
        dx = compiled(lambda full: svd.truncated_svd_vjp(full, full.v + 1, "published"))(full)
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
    def loss(x, gradient):
        v = svd.svd_right_vectors(x, 4, gradient, backend)
        return jnp.einsum("bcr,r,c->", v, jnp.arange(1.0, 5), jnp.cos(jnp.arange(v.shape[1])))

    x = special_maps()[shape]
    found = compiled(lambda x: [jax.value_and_grad(loss)(x, gradient) for gradient in svd.GRADIENTS])(x)
    for value, slope in found:
        assert np.isfinite(value)
        assert np.all(np.isfinite(slope))
        assert np.all(slope[0] == 0)
        assert np.abs(slope).max() < 1e3  # nothing of the size of 1 / round-off


@pytest.mark.parametrize("top1", svd.LEADING)
def test_leading_triplet(top1):
    """Of ReLU-like maps, of plain normal ones, and of those without full rank, whatever the way."""
    random = np.random.default_rng(5)
    maps = list(special_maps().values())
    for shape in ((3, 36, 8), (3, 8, 36), (3, 1, 7), (3, 7, 1)):
        maps.append(jnp.asarray(np.maximum(random.standard_normal(shape) + 0.5, 0), jnp.float32))
        maps.append(jnp.asarray(np.abs(random.standard_normal(shape)), jnp.float32))
    found = compiled(lambda maps: [svd.leading_triplet(x, top1) for x in maps])(maps)
    for i, (x, (s, u, v)) in enumerate(zip(maps, found, strict=True)):
        assert all(np.all(np.isfinite(part)) for part in (s, u, v))
        _, true_s, true_vt = np.linalg.svd(np.asarray(x, np.float64))
        np.testing.assert_allclose(s[:, 0], true_s[:, 0], rtol=1e-5)
        if i >= 2:
            expected = true_vt[:, 0] * np.sign(true_vt[:, 0].max(1) + true_vt[:, 0].min(1))[:, None]
            close(v[..., 0], expected)
            np.testing.assert_allclose(np.einsum("bkr,bkc,bcr->br", u, x, v), s, rtol=1e-5)


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
