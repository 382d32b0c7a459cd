"""Training views: colours, normalisation, flip and shifted crop, drawn for each image or, officially, for each batch.

The official code draws the three colour factors and the place of the crop once per batch and view, flips per image, and
adds a brightness of at most 0.2 on a scale of 0 to 255, that is, none (spec section 8).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from common.augment import flip_horizontal, image_keys, normalize, padded_crop, uniform_integers

DRAWS = ("image", "batch")


class Augmentation(NamedTuple):
    """What is drawn; 0 leaves a part out."""

    mean: tuple[float, ...]  # of normalisation, per channel, in units of [0, 1]
    std: tuple[float, ...]
    flip: float  # probability
    crop_padding: int  # in pixels, reflected
    brightness: float  # +- on the scale of 0..255
    contrast: float  # factor 1 +- this
    saturation: float  # factor 1 +- this; grey images have none
    draws: str  # "image" or "batch"


def view(images: UInt8[Array, "n h w c"], key: Array, spec: Augmentation, colours: bool) -> Float[Array, "n h w c"]:
    """One augmented, normalised view of each image; `colours`: with the colour changes of training with a bank."""
    count = len(images)
    draws = jax.vmap(lambda one: jax.random.uniform(one, (6,)))(image_keys(key, count))
    flipped = draws[:, 5] < spec.flip
    if spec.draws == "batch":
        draws = jnp.broadcast_to(draws[:1], draws.shape)
    pixels = images.astype(jnp.float32)
    if colours:
        factor = 2.0 * draws[:, :3, None, None, None] - 1.0
        pixels = pixels + spec.brightness * factor[:, 0]
        pixels = change_contrast(pixels, 1.0 + spec.contrast * factor[:, 1])
        pixels = change_saturation(pixels, 1.0 + spec.saturation * factor[:, 2])
    pixels = flip_horizontal(normalize(pixels, spec.mean, spec.std), flipped)
    top, left = (uniform_integers(draws[:, i], 2 * spec.crop_padding + 1) for i in (3, 4))
    return padded_crop(pixels, top, left, spec.crop_padding, "reflect")


def change_contrast(pixels: Float[Array, "n h w c"], factor: Float[Array, "n 1 1 1"]) -> Float[Array, "n h w c"]:
    """Distance of each channel from its mean over the image times the factor."""
    mean = pixels.mean((1, 2), keepdims=True)
    return (pixels - mean) * factor + mean


def change_saturation(pixels: Float[Array, "n h w c"], factor: Float[Array, "n 1 1 1"]) -> Float[Array, "n h w c"]:
    """Saturation of the HSV form times the factor, at most 1; hue and value stay."""
    value = pixels.max(-1, keepdims=True)
    span = value - pixels.min(-1, keepdims=True)
    saturation = jnp.where(value > 0, span / jnp.where(value > 0, value, 1.0), 0.0)
    changed = jnp.clip(saturation * factor, 0.0, 1.0)
    scale = jnp.where(saturation > 0, changed / jnp.where(saturation > 0, saturation, 1.0), 1.0)
    return value - (value - pixels) * scale
