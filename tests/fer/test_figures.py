"""Two coordinates of features."""

import numpy as np

from fer import figures


def test_principal_components_keep_the_largest_spread():
    random = np.random.default_rng(0)
    latents = random.normal(size=(50, 6)) * np.array([5.0, 3.0, 0.1, 0.1, 0.1, 0.1])
    points = figures.project(latents, "pca")
    np.testing.assert_allclose(points.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(np.abs(np.corrcoef(points[:, 0], latents[:, 0])[0, 1]), 1, atol=0.02)
    assert points[:, 0].std() > points[:, 1].std() > 1


def test_tsne_keeps_clusters_apart_and_repeats_itself():
    random = np.random.default_rng(0)
    latents = np.concatenate([random.normal(size=(12, 5)), random.normal(size=(12, 5)) + 20])
    points = figures.project(latents, "tsne")
    np.testing.assert_array_equal(points, figures.project(latents, "tsne"))
    one, other = points[:12], points[12:]
    apart = np.linalg.norm(one.mean(0) - other.mean(0))
    assert apart > 2 * max(np.linalg.norm(part - part.mean(0), axis=1).max() for part in (one, other))
