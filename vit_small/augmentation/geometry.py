"""Shear, translation and rotation of AutoAugment as one warp of the whole batch, in integers as Pillow computes them.

Every output pixel reads four source pixels in a line, along its row or its column, and a cubic through them at
`sixtieths` / 60 between the second and the third. Only shears lie between pixels; the others read the second alone.
Levels are tenths of slopes of 0.3, so a shear moves a line by a whole number of sixtieths of a pixel: nothing rounds,
and the result is the same on every backend.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32

from vit_small.augmentation.policies import INDEX, LEVELS, MAGNITUDES

FILL = 128  # grey level of what comes from outside the image


class Source(NamedTuple):
    """Where output pixels come from: the second of four source pixels, and how far to the third."""

    rows: Int[Array, "B h w"]
    columns: Int[Array, "B h w"]
    sixtieths: Int[Array, "B h w"]
    inside: Bool[Array, "B h w"]


def warp(
    planes: Int[Array, "c B h w"], operation: Int[Array, " B"], level: Int[Array, " B"], sign: Int[Array, " B"]
) -> Int[Array, "c B h w"]:
    """The images sheared, translated or rotated, grey where that reads outside; other operations change nothing.

    Args:
      planes: grey or RGB.
      operation: index into `policies.OPERATIONS`.
      level: 0..9.
      sign: 1 or -1, the direction; a positive one reads to the right or below, and rotates counter-clockwise.
    """
    channels, batch, height, width = planes.shape
    source = _sources(height, width, operation, level, sign)
    # Reading is what costs: one integer that holds a pixel's channels is read instead of three.
    shifts = 8 * jnp.arange(channels)[:, None, None, None]
    packed = jnp.sum(planes << shifts, axis=0).reshape(batch, height * width)
    along_rows = (operation == INDEX["shearX"])[:, None, None]

    def tap(step: Int[Array, ""]) -> Int[Array, "B h w"]:
        rows = jnp.clip(source.rows + jnp.where(along_rows, 0, step), 0, height - 1)
        columns = jnp.clip(source.columns + jnp.where(along_rows, step, 0), 0, width - 1)
        places = (rows * width + columns).reshape(packed.shape)
        return jnp.take_along_axis(packed, places, axis=1, mode="promise_in_bounds").reshape(batch, height, width)

    # A loop, so that the arithmetic is not fused with the reading: XLA makes no vector code of what reads by index.
    before, here, after, beyond = ((taps[None] >> shifts) & 255 for taps in jax.lax.map(tap, jnp.arange(-1, 3)))
    return jnp.where(source.inside[None], _cubic(before, here, after, beyond, source.sixtieths[None]), FILL)


def _sources(
    height: int, width: int, operation: Int[Array, " B"], level: Int[Array, " B"], sign: Int[Array, " B"]
) -> Source:
    """Where each pixel is read. Pillow reads x + 0.5 + m (y + 0.5) for a shear, x + 0.5 + m w for a translation."""
    rows, columns = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None]

    def chosen(name: str) -> Bool[Array, "B 1 1"]:
        return (operation == INDEX[name])[:, None, None]

    signed = (sign * level)[:, None, None]
    right = _line_offset(chosen("shearX"), chosen("translateX"), signed, rows, width)
    down = _line_offset(chosen("shearY"), chosen("translateY"), signed, columns, height)
    turned_rows, turned_columns = _rotated(height, width, level, sign)
    rotate = chosen("rotate")
    nearest_rows = jnp.where(rotate, turned_rows, rows + (down + 30) // 60)
    nearest_columns = jnp.where(rotate, turned_columns, columns + (right + 30) // 60)
    return Source(
        rows=jnp.where(rotate, turned_rows, rows + down // 60),
        columns=jnp.where(rotate, turned_columns, columns + right // 60),
        sixtieths=jnp.broadcast_to((right + down) % 60, nearest_rows.shape),  # one of them is 0
        inside=(nearest_rows >= 0) & (nearest_rows < height) & (nearest_columns >= 0) & (nearest_columns < width),
    )


def _line_offset(
    sheared: Bool[Array, "B 1 1"],
    translated: Bool[Array, "B 1 1"],
    signed_level: Int[Array, "B 1 1"],
    lines: Int[Array, "1 m n"],
    side: int,
) -> Int[Array, "B m n"]:
    """By how many sixtieths of a pixel each line is moved: level / 30 (line + 0.5), or the nearest whole pixel to
    level 150 / (9 * 331) of the side."""
    shear = signed_level * (2 * lines + 1)
    translation = (2 * 50 * side * signed_level + 993) // (2 * 993) * 60
    return jnp.where(sheared, shear, jnp.where(translated, translation, 0))


def _rotated(
    height: int, width: int, level: Int[Array, " B"], sign: Int[Array, " B"]
) -> tuple[Int[Array, "B h w"], Int[Array, "B h w"]]:
    """Source rows and columns of a rotation about the centre, from Pillow's fixed-point numbers of 16 bits."""
    table = jnp.asarray(_rotation_table(height, width))
    numbers = table[jnp.where(sign > 0, 0, 1), level][:, :, None, None]
    rows, columns = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None]
    source_columns = (numbers[:, 0] * columns + numbers[:, 1] * rows + numbers[:, 2]) >> 16
    source_rows = (numbers[:, 3] * columns + numbers[:, 4] * rows + numbers[:, 5]) >> 16
    return source_rows, source_columns


def _rotation_table(height: int, width: int) -> Int32[np.ndarray, "2 levels 6"]:
    """[counter-clockwise or clockwise, level]: column = a x + b y + c and row = d x + e y + f, times 2**16."""
    table = np.empty((2, LEVELS, 6))
    for direction, sign in enumerate((1, -1)):
        for level, degrees in enumerate(MAGNITUDES[INDEX["rotate"]]):
            cosine, sine = math.cos(math.radians(sign * degrees)), math.sin(math.radians(sign * degrees))
            # A pixel's centre relative to the image's centre, turned, and back.
            x, y = 0.5 - width / 2, 0.5 - height / 2
            first = cosine * x - sine * y + width / 2
            second = sine * x + cosine * y + height / 2
            table[direction, level] = cosine, -sine, first, sine, cosine, second
    return np.floor(table * 65536 + 0.5).astype(np.int32)


def _cubic(
    before: Int[Array, "c B h w"],
    here: Int[Array, "c B h w"],
    after: Int[Array, "c B h w"],
    beyond: Int[Array, "c B h w"],
    sixtieths: Int[Array, "1 B h w"],
) -> Int[Array, "c B h w"]:
    """Pillow's cubic (a = -1) through four grey levels, cut to 0..255 and rounded down."""
    linear = after - before
    square = 2 * (before - here) + after - beyond
    cube = -before + here - after + beyond
    parts = sixtieths * (60 * 60 * linear + sixtieths * (60 * square + sixtieths * cube))
    return jnp.clip(60**3 * here + parts, 0, 255 * 60**3) // 60**3
