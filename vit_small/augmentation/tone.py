"""The operations of AutoAugment that change the grey level of each pixel by itself.

Posterize, solarize, brightness and invert treat all images alike; contrast, autocontrast and equalize look at the
image's mean or its histogram first.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vit_small.augmentation.policies import INDEX, MAGNITUDES


def blend(
    other: Int[Array, "*shape"], image: Int[Array, "*shape"], factor: Float[Array, "*other"]
) -> Int[Array, "*shape"]:
    """other + factor (image - other), cut to 0..255 and rounded down, to the bit as Pillow's blend.

    Pillow rounds the product and the sum to float32, one after the other; written so, XLA would make a fused
    multiply-add of it, which rounds once. So the sum is made in integers, in units of 2**-21, and then rounded.
    """
    product = (factor * (image - other).astype(jnp.float32) * 2.0**21).astype(jnp.int32)
    total = ((other << 21) + product).astype(jnp.float32)
    return jnp.clip(total * 2.0**-21, 0.0, 255.0).astype(jnp.int32)


def enhancement_factor(level: Int[Array, " B"], sign: Int[Array, " B"]) -> Float[Array, "1 B 1 1"]:
    """1 + 0.1 level, or 1 - 0.1 level: below 1 takes colour, contrast, sharpness or brightness away, above adds."""
    strengths = MAGNITUDES[INDEX["color"]]
    factors = jnp.asarray(np.stack([1 + strengths, 1 - strengths]), jnp.float32)
    return factors[jnp.where(sign > 0, 0, 1), level][None, :, None, None]


def luma(planes: Int[Array, "c B h w"]) -> Int[Array, "1 B h w"]:
    """Grey level of each pixel, as Pillow converts RGB to L; grey images are their own."""
    if planes.shape[0] == 1:
        return planes
    return (19595 * planes[:1] + 38470 * planes[1:2] + 7471 * planes[2:] + 32768) >> 16


def tones(
    planes: Int[Array, "c B h w"], level: Int[Array, " B"], sign: Int[Array, " B"]
) -> dict[str, Int[Array, "c B h w"]]:
    """The images after each of the operations of this file, by name."""
    bits = jnp.asarray(MAGNITUDES[INDEX["posterize"]], jnp.int32)[level]
    dropped = (8 - bits)[None, :, None, None]
    threshold = jnp.asarray(np.ceil(MAGNITUDES[INDEX["solarize"]]), jnp.int32)[level][None, :, None, None]
    factor = enhancement_factor(level, sign)
    histogram = _histogram(planes)
    return {
        "posterize": planes >> dropped << dropped,
        "solarize": jnp.where(planes < threshold, planes, 255 - planes),
        "brightness": blend(jnp.zeros_like(planes), planes, factor),
        "invert": 255 - planes,
        "contrast": blend(jnp.broadcast_to(_rounded_mean(luma(planes)), planes.shape), planes, factor),
        "autocontrast": _autocontrast(planes, *_lowest_and_highest(histogram)),
        "equalize": _equalize(planes, histogram),
    }


def _rounded_mean(grey: Int[Array, "1 B h w"]) -> Int[Array, "1 B 1 1"]:
    pixels = grey.shape[2] * grey.shape[3]
    return (2 * jnp.sum(grey, axis=(2, 3), keepdims=True) + pixels) // (2 * pixels)


def _histogram(planes: Int[Array, "c B h w"]) -> Int[Array, "c B 256"]:
    def count(levels: Array) -> Array:
        return jnp.zeros(256, jnp.int32).at[levels].add(1, mode="promise_in_bounds")

    channels, batch = planes.shape[:2]
    return jax.vmap(count)(planes.reshape(channels * batch, -1)).reshape(channels, batch, 256)


def _lowest_and_highest(histogram: Int[Array, "c B 256"]) -> tuple[Int[Array, "c B 1 1"], Int[Array, "c B 1 1"]]:
    """The lowest and the highest level that occurs."""
    levels = jnp.arange(256)[None, None]
    lowest = jnp.min(jnp.where(histogram > 0, levels, 255), axis=-1)
    highest = jnp.max(jnp.where(histogram > 0, levels, 0), axis=-1)
    return lowest[:, :, None, None], highest[:, :, None, None]


def _autocontrast(
    planes: Int[Array, "c B h w"], lowest: Int[Array, "c B 1 1"], highest: Int[Array, "c B 1 1"]
) -> Int[Array, "c B h w"]:
    """The levels of each channel stretched to 0..255; a channel of one level stays.

    Where the quotient is a whole number, Pillow's float64 product sometimes falls below it: then it is 1 lower than
    here (12,094 of the 2.8 million pairs of a range and a level in it).
    """
    stretched = 255 * (planes - lowest) // jnp.maximum(highest - lowest, 1)
    return jnp.where(highest > lowest, stretched, planes)


def _equalize(planes: Int[Array, "c B h w"], histogram: Int[Array, "c B 256"]) -> Int[Array, "c B h w"]:
    """The levels of each channel spread so that they occur about equally often, as Pillow does: the step from one new
    level to the next leaves out the pixels of the highest level; a channel with a step of 0 pixels stays."""
    channels, batch = planes.shape[:2]
    up_to = jnp.cumsum(histogram, axis=-1)
    levels = planes.reshape(channels, batch, -1)

    def read(of_channel: tuple[Int[Array, "B 256"], Int[Array, "B hw"]]) -> Int[Array, "B hw"]:
        return jnp.take_along_axis(*of_channel, axis=-1, mode="promise_in_bounds")

    # A loop, so that the arithmetic is not fused with the reading: XLA makes no vector code of what reads by index.
    below = jax.lax.map(read, (up_to - histogram, levels)).reshape(planes.shape)
    highest = _lowest_and_highest(histogram)[1][..., 0]
    pixels = planes.shape[2] * planes.shape[3]
    of_highest = jnp.take_along_axis(histogram, highest, axis=-1, mode="promise_in_bounds")
    step = ((pixels - of_highest) // 255)[..., None]
    spread = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, spread, planes)
