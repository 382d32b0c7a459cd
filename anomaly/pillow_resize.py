"""Pillow's Lanczos resize and the centre crop inside a compiled program, bit for bit: an export needs no Pillow.

Pillow resizes 8-bit images one axis after the other, with weights rounded to 22 binary digits and the result of each
axis rounded to 8 bits (Resample.c); integers reproduce that exactly.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from common.data.anomaly import Frame

_SUPPORT, _DIGITS = 3.0, 22


def lanczos_weights(size: int, new_size: int) -> tuple[Int[np.ndarray, " new"], Int[np.ndarray, "new taps"]]:
    """First input position of every output position, and the fixed-point weights from there on."""
    scale = size / new_size
    stretch = max(scale, 1.0)
    support = _SUPPORT * stretch
    taps = int(np.ceil(support)) * 2 + 1
    first, weights = np.zeros(new_size, np.int32), np.zeros((new_size, taps))
    for place in range(new_size):
        centre = (place + 0.5) * scale
        start, stop = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), size)
        x = (np.arange(start, stop) - centre + 0.5) / stretch
        values = np.where(np.abs(x) < _SUPPORT, np.sinc(x) * np.sinc(x / _SUPPORT), 0.0)
        first[place], weights[place, : stop - start] = start, values / values.sum()
    fixed = weights * (1 << _DIGITS)
    return first, np.trunc(fixed + np.where(fixed < 0, -0.5, 0.5)).astype(np.int32)


def resize_axis(images: UInt8[Array, "B H W c"], new_size: int, axis: int) -> UInt8[Array, "B H2 W2 c"]:
    """One axis (1 or 2) at its new length."""
    size = images.shape[axis]
    if size == new_size:
        return images
    first, weights = lanczos_weights(size, new_size)
    total = jnp.asarray(1 << (_DIGITS - 1), jnp.int32)
    shape = [1, 1, 1, 1]
    shape[axis] = new_size
    for tap in range(weights.shape[1]):
        rows = jnp.take(images, np.minimum(first + tap, size - 1), axis=axis).astype(jnp.int32)
        total = total + rows * jnp.broadcast_to(weights[:, tap].reshape(shape), rows.shape)
    return jnp.clip(total >> _DIGITS, 0, 255).astype(jnp.uint8)


def apply_frame(frame: Frame, images: UInt8[Array, "B H W 3"]) -> UInt8[Array, "B h w 3"]:
    """`Frame.image` of a batch of RGB pixels."""
    height, width = frame.resized(*images.shape[1:3])
    resized = resize_axis(resize_axis(images, width, 2), height, 1)
    top, left = frame.offset(height, width)
    return resized[:, top : top + frame.crop[0], left : left + frame.crop[1]]
