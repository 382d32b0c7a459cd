"""Pseudo-labels against the golden arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.errors import UserError
from multitask import kmeans, pseudo_labels
from tests.multitask import golden

ARRAYS = golden.load("deepcluster")
FEATURES = jnp.asarray(ARRAYS["features"])


def test_whitening():
    assert float(ARRAYS["whiten_eps"]) == pseudo_labels.WHITENING_EPSILON
    found = pseudo_labels.pca_whiten(FEATURES, 6)
    np.testing.assert_allclose(found.eigenvalues, ARRAYS["pca_eigenvalues"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.rows @ found.rows.T, ARRAYS["gram"], atol=1e-4)


def test_clusters_and_weights():
    rows, count = pseudo_labels.pca_whiten(FEATURES, 6).rows, int(ARRAYS["num_clusters"])
    centroids = rows[:count]
    for assignments, inertia in zip(ARRAYS["kmeans_assign"], ARRAYS["kmeans_inertia"], strict=True):
        found = kmeans.lloyd_step(rows, centroids)
        centroids = found.centroids
        np.testing.assert_array_equal(found.assignments, assignments)
        np.testing.assert_allclose(found.inertia, inertia, rtol=1e-4)
    np.testing.assert_array_equal(jnp.bincount(found.assignments, length=count), ARRAYS["counts"])
    weights = pseudo_labels.cluster_weights(found.assignments, count)
    np.testing.assert_allclose(weights, ARRAYS["sample_weights"], rtol=1e-5)


def test_weights_with_empty_clusters():
    weights = pseudo_labels.cluster_weights(jnp.array([0, 0, 0, 4]), 6)
    np.testing.assert_allclose(weights, [2 / 3, 2 / 3, 2 / 3, 2])


def test_labels_of_clear_groups():
    groups = jnp.repeat(jnp.eye(4, 8), 10, axis=0) + 0.01 * jax.random.normal(jax.random.key(0), (40, 8))
    # One run of k-means++ may merge two groups; of several keys at least one finds them.
    found = [pseudo_labels.assign_pseudo_labels(groups, 4, 3, jax.random.key(seed)) for seed in range(5)]
    starts = [labels[::10].tolist() for labels in found]
    assert any(len(set(first)) == 4 and labels.tolist() == np.repeat(first, 10).tolist()
               for first, labels in zip(starts, found, strict=True))  # fmt: skip
    with pytest.raises(UserError, match="num_clusters is 41, but there are only 40 images"):
        pseudo_labels.assign_pseudo_labels(groups, 41, 3, jax.random.key(0))
