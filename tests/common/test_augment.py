"""Crop, flip, normalise and boxes against numpy, image by image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import augment

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 7, 3)).astype(np.uint8)


def test_keys_of_images_do_not_depend_on_the_size_of_the_batch():
    few, many = (jax.random.key_data(augment.image_keys(jax.random.key(3), size)) for size in (4, 9))
    np.testing.assert_array_equal(few, many[:4])
    assert len(np.unique(many, axis=0)) == 9


def test_flip():
    flipped = np.array([True, False, True, False, False, True])
    expected = [image[:, ::-1] if flip else image for image, flip in zip(IMAGES, flipped, strict=True)]
    np.testing.assert_array_equal(augment.flip_horizontal(jnp.asarray(IMAGES), jnp.asarray(flipped)), expected)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_crop(mode):
    top, left = np.array([0, 1, 2, 3, 4, 4]), np.array([4, 0, 2, 1, 3, 4])
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)), mode)
    expected = [image[t : t + 5, x : x + 7] for image, t, x in zip(padded, top, left, strict=True)]
    ours = augment.padded_crop(jnp.asarray(IMAGES), jnp.asarray(top), jnp.asarray(left), 2, mode)
    np.testing.assert_array_equal(ours, expected)


def test_crop_in_the_middle_or_without_padding_changes_nothing():
    images, two = jnp.asarray(IMAGES), jnp.full(6, 2)
    np.testing.assert_array_equal(augment.padded_crop(images, two, two, 2), IMAGES)
    assert augment.padded_crop(images, two, two, 0) is images


def test_normalize():
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    ours = augment.normalize(jnp.asarray(IMAGES), mean, std)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, (IMAGES / 255 - mean) / std, rtol=1e-5, atol=1e-6)


def test_inside_boxes():
    ours = augment.inside_boxes(5, 7, *(jnp.array(edge) for edge in ([1, 0], [3, 0], [2, 0], [7, 7])))
    expected = np.zeros((2, 5, 7), bool)
    expected[0, 1:3, 2:7] = True
    np.testing.assert_array_equal(ours, expected)
