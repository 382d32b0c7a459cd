"""Scores and maps against the official code and SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from anomaly import scoring
from anomaly.hypersphere import nearest_sq_distances
from tests.anomaly import golden


def test_golden_score_map():
    expected = golden.load("score_map")
    phi = jnp.asarray(golden.nhwc(expected["phi"]).reshape(3, 64, 10))
    nearest = nearest_sq_distances(phi, jnp.asarray(expected["C"].T), 3)
    np.testing.assert_allclose(jnp.sqrt(nearest), expected["dist_top3"], rtol=0, atol=5e-6)
    score = scoring.softmin_score(nearest).reshape(3, 8, 8)
    np.testing.assert_allclose(score, expected["score"][:, 0], rtol=0, atol=5e-6)
    size = int(expected["size"])
    upsampled = scoring.upsample_scores(score, size, size)
    np.testing.assert_allclose(upsampled, expected["upsampled"], rtol=0, atol=5e-6)
    smoothed = scoring.gaussian_smooth(upsampled)
    np.testing.assert_allclose(smoothed, expected["smoothed"], rtol=0, atol=5e-6)
    np.testing.assert_allclose(scoring.anomaly_maps(score, size, size), expected["smoothed"], rtol=0, atol=5e-6)
    rescaled = scoring.rescale_dataset(np.asarray(smoothed))
    np.testing.assert_allclose(rescaled, expected["rescaled"], rtol=0, atol=5e-6)
    scores = scoring.image_scores(jnp.asarray(rescaled))
    np.testing.assert_allclose(scores, expected["image_score"], rtol=0, atol=5e-6)


@pytest.mark.parametrize("shape", [(40, 40), (7, 30), (3, 5), (1, 9)])
def test_smoothing_is_that_of_scipy_also_for_maps_smaller_than_the_kernel(shape, float64):
    maps = np.random.default_rng(0).standard_normal((2, *shape))
    expected = [ndimage.gaussian_filter(one, 4.0) for one in maps]
    np.testing.assert_allclose(scoring.gaussian_smooth(jnp.asarray(maps)), expected, rtol=0, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(small=st.integers(1, 12), large=st.integers(1, 50))
def test_enlarging_matrix_is_linear_interpolation(small, large):
    places = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0, small - 1)
    row = np.random.default_rng(small).standard_normal(small)
    got = scoring.upsampling_matrix(small, large) @ row
    np.testing.assert_allclose(got, np.interp(places, np.arange(small), row), rtol=0, atol=1e-12)


def test_soft_min_of_equal_distances_and_of_zero():
    np.testing.assert_allclose(scoring.softmin_score(jnp.full((1, 3), 4.0)), [2 / 3], rtol=1e-6)
    np.testing.assert_allclose(scoring.softmin_score(jnp.asarray([[0.0, 1.0, 1.0]])), [0.0])
    far = scoring.softmin_score(jnp.asarray([[1e6, 4e6, 9e6]]))  # exp(-1000) is 0 in float32
    np.testing.assert_allclose(far, [1000.0])


def test_order_of_the_bank_and_company_in_the_batch_change_nothing():
    random = np.random.default_rng(4)
    phi, bank = (jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in ((3, 20, 6), (15, 6)))
    scores = scoring.softmin_score(nearest_sq_distances(phi, bank, 3))
    shuffled = scoring.softmin_score(nearest_sq_distances(phi, bank[random.permutation(15)], 3))
    np.testing.assert_allclose(scores, shuffled, rtol=0, atol=1e-6)
    alone = scoring.softmin_score(nearest_sq_distances(phi[1:2], bank, 3))
    np.testing.assert_allclose(scores[1:2], alone, rtol=0, atol=1e-6)


def test_rescaling_a_constant_set_gives_zeros():
    assert not scoring.rescale_dataset(np.full((2, 3, 3), 5.0)).any()
