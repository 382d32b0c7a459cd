"""The bank against the official code, and what it must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np

from anomaly import descriptor, memory_bank
from anomaly.descriptor import PatchDescriptor
from tests.anomaly import golden


def test_golden_running_mean():
    expected = golden.load("memory_bank")
    params = golden.descriptor_params("memory_bank", 28, 450)
    np.testing.assert_array_equal(params["kernel"].T[:8], expected["layer.conv.weight_first8"])
    np.testing.assert_array_equal(params["bias"], expected["layer.conv.bias"])
    assert descriptor.descriptor_width((64, 128, 256), int(expected["gamma_d"])) == 28
    describe = jax.jit(lambda taps: PatchDescriptor(28).apply({"params": params}, descriptor.pool_taps(taps)))
    mean = jnp.zeros((4, 4, 28))
    for batch in range(3):
        taps = [jnp.asarray(golden.nhwc(expected[f"p{i}"][batch])) for i in range(3)]
        phi = describe(taps)
        seen = jnp.asarray(2.0 * batch)
        mean = memory_bank.running_mean(mean, seen, jnp.sum(phi, axis=0), jnp.asarray(2.0))
    bank = memory_bank.flatten_bank(mean)
    np.testing.assert_allclose(bank.T, expected["bank_DxM"], rtol=0, atol=2e-6)
    # φ is affine: the mean over images of φ is φ of the mean.
    means = [jnp.asarray(golden.nhwc(expected[f"p{i}"]).mean(axis=(0, 1)))[None] for i in range(3)]
    of_means = describe(means)[0]
    np.testing.assert_allclose(memory_bank.flatten_bank(of_means).T, expected["bank_DxM"], rtol=0, atol=2e-6)


def test_golden_compression():
    expected = golden.load("memory_bank")
    points = expected["kmeans_points"]
    centres = memory_bank.compress_bank(points, int(expected["gamma_c"]), seed=0, restarts=10)
    centres = centres[np.lexsort(centres.T[::-1])]
    np.testing.assert_allclose(centres, expected["kmeans_centers"], rtol=0, atol=1e-4)
    inertia = np.sum(np.min(np.sum((points[:, None] - centres[None]) ** 2, axis=-1), axis=-1))
    np.testing.assert_allclose(inertia, expected["kmeans_inertia"], rtol=1e-3)
    again = memory_bank.compress_bank(points, int(expected["gamma_c"]), seed=0, restarts=10)
    np.testing.assert_array_equal(again[np.lexsort(again.T[::-1])], centres)
    assert memory_bank.compress_bank(points, 1, 0, 1) is points
    assert memory_bank.compress_bank(points[:50], 7, 0, 1).shape == (7, 8)


def test_images_of_uneven_batches_count_equally():
    images = np.random.default_rng(0).standard_normal((7, 2, 3, 4)).astype(np.float32)
    mean, seen = jnp.zeros((2, 3, 4)), 0.0
    for part in (images[:3], images[3:6], images[6:]):
        total = jnp.asarray(part.sum(axis=0))
        mean = memory_bank.running_mean(mean, jnp.asarray(seen), total, jnp.asarray(float(len(part))))
        seen += len(part)
    np.testing.assert_allclose(mean, images.mean(axis=0), rtol=0, atol=1e-6)


def test_nearest_ema_averages_the_nearest_patches():
    bank = jnp.asarray([[0.0, 0.0], [10.0, 0.0], [0.0, 9.0]])
    phi = jnp.asarray([[1.0, 1.0], [9.0, 1.0], [100.0, 100.0]])
    new = memory_bank.nearest_ema(bank, phi, jnp.asarray(0.5))
    np.testing.assert_allclose(new, [[0.5, 0.5], [9.5, 0.5], [0.5, 5.0]])


def test_nearest_ema_follows_patches_that_move():
    """Images that are shifted copies of one another leave the bank as it is, where a mean over positions would blur."""
    phi = jnp.asarray(np.random.default_rng(1).standard_normal((12, 3)), jnp.float32)
    bank = phi
    for image in range(1, 4):
        bank = memory_bank.nearest_ema(bank, jnp.roll(phi, image, axis=0), jnp.asarray(1 / (image + 1)))
    np.testing.assert_allclose(bank, phi, rtol=0, atol=1e-6)
