"""From a decoded picture to a uint8 array of the wanted size and channels."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def fit_picture(picture: Image.Image, image_size: int, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """Picture as uint8 [image_size, image_size, channels]: bicubic, not cropped; grey is ITU-R 601 luma."""
    if picture.mode.startswith("I;16"):
        # Pillow's own conversion to 8 bits clips at 255 instead of scaling.
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    picture = picture.convert("L" if channels == 1 else "RGB")
    if picture.size != (image_size, image_size):
        picture = picture.resize((image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(picture).reshape(image_size, image_size, channels)


def fit_arrays(
    images: UInt8[np.ndarray, "n h w"] | UInt8[np.ndarray, "n h w 1"] | UInt8[np.ndarray, "n h w 3"],
    image_size: int,
    channels: int,
) -> UInt8[np.ndarray, "n s s c"]:
    """Grey or RGB arrays as uint8 [n, image_size, image_size, channels], each as `fit_picture` does it."""
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    out = np.empty((len(images), image_size, image_size, channels), np.uint8)
    for index, image in enumerate(images):
        out[index] = fit_picture(Image.fromarray(image), image_size, channels)
    return out
