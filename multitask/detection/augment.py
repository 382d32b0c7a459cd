"""Augmentation for detection: images and their boxes together, on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from common.augment import flip_horizontal


class Objects(NamedTuple):
    """Boxes (ymin, xmin, ymax, xmax) in 0..1 and labels (-1: padding) of a batch."""

    boxes: Float[Array, "B G 4"]
    labels: Int[Array, "B G"]


class Strength(NamedTuple):
    """How much is done to an image.

    Attributes:
      flip: whether images are mirrored half of the time.
      min_scale, max_scale: an image is drawn between so many times as large, at a random place; 1 and 1: left as it is.
      colour: brightness and contrast change by a factor of 1 - colour .. 1 + colour.
    """

    flip: bool
    min_scale: float
    max_scale: float
    colour: float


def flip(images: Float[Array, "B H W 3"], objects: Objects, flipped: Bool[Array, " B"]) -> tuple[Array, Objects]:
    """Images and boxes, those `flipped` mirrored left to right."""
    top, left, bottom, right = (objects.boxes[..., edge] for edge in range(4))
    mirrored = jnp.stack([top, 1 - right, bottom, 1 - left], axis=-1)
    boxes = jnp.where(flipped[:, None, None], mirrored, objects.boxes)
    return flip_horizontal(images, flipped), Objects(boxes, objects.labels)


def rescale(
    images: Float[Array, "B H W 3"], objects: Objects, scale: Float[Array, " B"], shift: Float[Array, "B 2"]
) -> tuple[Array, Objects]:
    """Images drawn `scale` times as large and moved by `shift` (down, right; in sides), on zeros.

    Boxes move along and are cut at the edges; an object whose centre is outside then is taken for padding.
    """
    side = images.shape[1]

    def draw(image: Array, scale: Array, shift: Array) -> Array:
        return jax.image.scale_and_translate(
            image, image.shape, (0, 1), jnp.stack([scale, scale]), shift * side, "linear", antialias=False
        )

    moved = objects.boxes * scale[:, None, None] + jnp.concatenate([shift, shift], axis=-1)[:, None]
    center = (moved[..., :2] + moved[..., 2:]) / 2
    stays = jnp.all((center >= 0) & (center <= 1), axis=-1)
    labels = jnp.where(stays, objects.labels, -1)
    return jax.vmap(draw)(images, scale, shift), Objects(jnp.clip(moved, 0.0, 1.0), labels)


def augment(
    images: Float[Array, "B H W 3"], objects: Objects, keys: Key[Array, " B"], strength: Strength
) -> tuple[Float[Array, "B H W 3"], Objects]:
    """Normalised images and their objects, changed at random; `keys`: one for each image."""
    draws = jax.vmap(lambda key: jax.random.uniform(key, (6,)))(keys)
    if strength.colour:
        brightness, contrast = (1 + strength.colour * (2 * draws[:, i, None, None, None] - 1) for i in (0, 1))
        middle = jnp.mean(images, axis=(1, 2, 3), keepdims=True)
        images = (images - middle) * contrast + middle * brightness
    if strength.flip:
        images, objects = flip(images, objects, draws[:, 2] < 0.5)
    if (strength.min_scale, strength.max_scale) != (1, 1):
        scale = strength.min_scale + draws[:, 3] * (strength.max_scale - strength.min_scale)
        images, objects = rescale(images, objects, scale, draws[:, 4:] * (1 - scale)[:, None])
    return images, objects
