"""The exported resize against Pillow itself, bit for bit; turns of RD-MVTec against Pillow's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from anomaly import augment, pillow_resize
from common.data.anomaly import Frame


@pytest.mark.parametrize(
    ("height", "width", "resize", "crop"),
    [
        (90, 90, 32, (32, 32)),
        (37, 61, 48, (32, 64)),
        (50, 40, 0, (32, 24)),
        (33, 70, 33, (33, 33)),
        (21, 20, 64, (48, 64)),
    ],
)
def test_same_pixels_as_pillow(height, width, resize, crop):
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    pixels[: height // 2] = np.where(pixels[: height // 2] > 127, 255, 0)  # overshoot at hard edges
    frame = Frame(resize, crop)
    expected = frame.image(Image.fromarray(pixels), "test")
    with jax.disable_jit():
        got = pillow_resize.apply_frame(frame, jnp.asarray(pixels)[None])[0]
    np.testing.assert_array_equal(got, expected)


def test_turn_is_that_of_pillow():
    pixels = np.random.default_rng(0).integers(1, 256, (40, 56, 3), np.uint8)
    turn = jax.jit(augment.rotate_and_crop, static_argnums=(3, 4))
    for degrees in (-9.3, 0.0, 4.0, 10.0):
        expected = np.asarray(Image.fromarray(pixels).rotate(degrees))
        got = turn(jnp.asarray(pixels), jnp.asarray(degrees), jnp.zeros(2, jnp.int32), 40, 56)
        assert np.mean(np.any(got != expected, axis=-1)) < 0.01  # a few pixels lie on the edge between two
        part = turn(jnp.asarray(pixels), jnp.asarray(degrees), jnp.asarray([3, 5]), 40, 56)
        np.testing.assert_array_equal(part[:30, :40], got[3:33, 5:45])


def test_image_and_mask_get_the_same_draw():
    image = np.random.default_rng(1).integers(0, 2, (2, 24, 24, 1)).astype(np.uint8)
    keys = jax.random.split(jax.random.key(3), 2)
    turn = jax.jit(augment.random_rotate_and_crop, static_argnums=(2, 3))
    np.testing.assert_array_equal(turn(image, keys, 16, 16), turn(image * 255, keys, 16, 16) // 255)
    one = turn(image[1:], keys[1:], 16, 16)
    np.testing.assert_array_equal(one[0], turn(image, keys, 16, 16)[1])
