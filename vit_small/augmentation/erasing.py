"""Random erasing (Zhong et al. 2020): a rectangle of each image, chosen with a probability, is painted over."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from common.augment import inside_boxes


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

    def draw(key: PRNGKeyArray) -> Rectangle:
        of_coin, of_area, of_aspect, of_top, of_left = jax.random.split(key, 5)
        areas = jax.random.uniform(of_area, (attempts,), minval=area[0], maxval=area[1])
        aspects = jax.random.uniform(of_aspect, (attempts,), minval=aspect[0], maxval=aspect[1])
        tall, wide, fits = rectangle_size(height, width, areas, aspects)
        first = jnp.argmax(fits)
        happens = (jax.random.uniform(of_coin) < probability) & fits[first]
        tall, wide = jnp.where(happens, tall[first], 0), jnp.where(happens, wide[first], 0)
        top = jax.random.randint(of_top, (), 0, height - tall + 1)
        left = jax.random.randint(of_left, (), 0, width - wide + 1)
        return Rectangle(top, left, tall, wide)

    return jax.vmap(draw)(keys)


def erase(
    images: Float[Array, "B h w c"], rectangle: Rectangle, fill: Sequence[float] | Float[Array, "B h w c"]
) -> Float[Array, "B h w c"]:
    """The images with `fill`, a value for each channel or for each pixel, in their rectangles."""
    top, left, tall, wide = rectangle
    erased = inside_boxes(*images.shape[1:3], top, top + tall, left, left + wide)
    paint = fill if isinstance(fill, jax.Array) else jnp.asarray(fill, images.dtype)[None, None, None]
    return jnp.where(erased[..., None], paint, images)
