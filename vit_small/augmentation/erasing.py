"""Random erasing (Zhong et al. 2020): a rectangle of each image, chosen with a probability, is painted over."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from common.augment import inside_boxes, uniform_integers


class Rectangle(NamedTuple):
    """Of each image: its first row and column, and its size in pixels, 0 x 0 where nothing is erased."""

    top: Int[Array, " B"]
    left: Int[Array, " B"]
    height: Int[Array, " B"]
    width: Int[Array, " B"]


def rectangle_size(
    height: int, width: int, area: Float[Array, "*shape"], aspect: Float[Array, "*shape"]
) -> tuple[Int[Array, "*shape"], Int[Array, "*shape"], Bool[Array, "*shape"]]:
    """Height and width of a rectangle of an `area` (fraction of the image) and `aspect` (height to width), and whether
    it is smaller than the image both ways."""
    target = area * (height * width)
    tall = jnp.round(jnp.sqrt(target * aspect)).astype(jnp.int32)
    wide = jnp.round(jnp.sqrt(target / aspect)).astype(jnp.int32)
    return tall, wide, (tall < height) & (wide < width)


def draw_rectangles(
    keys: Key[Array, " B"],
    height: int,
    width: int,
    probability: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
    attempts: int,
) -> Rectangle:
    """A rectangle for each image: the first of `attempts` uniform pairs of area and aspect that fits, if any does."""

    uniform = jax.vmap(lambda key: jax.random.uniform(key, (3 + 2 * attempts,)))(keys)
    coin, of_top, of_left = uniform[:, 0], uniform[:, 1], uniform[:, 2]
    areas, aspects = jnp.split(uniform[:, 3:], 2, axis=1)
    areas, aspects = area[0] + (area[1] - area[0]) * areas, aspect[0] + (aspect[1] - aspect[0]) * aspects
    tall, wide, fits = rectangle_size(height, width, areas, aspects)
    first = jnp.argmax(fits, axis=1, keepdims=True)
    happens = (coin < probability) & fits.any(axis=1)
    tall, wide = (jnp.where(happens, jnp.take_along_axis(side, first, axis=1)[:, 0], 0) for side in (tall, wide))
    top, left = uniform_integers(of_top, height - tall + 1), uniform_integers(of_left, width - wide + 1)
    return Rectangle(top, left, tall, wide)


def erase(
    images: Float[Array, "B h w c"], rectangle: Rectangle, fill: Sequence[float] | Float[Array, "B h w c"]
) -> Float[Array, "B h w c"]:
    """The images with `fill`, a value for each channel or for each pixel, in their rectangles."""
    height, width = images.shape[1:3]
    top, left, tall, wide = rectangle
    erased = inside_boxes(height, width, top, top + tall, left, left + wide)
    paint = fill if isinstance(fill, jax.Array) else jnp.asarray(fill, images.dtype)[None, None, None]
    return jnp.where(erased[..., None], paint, images)
