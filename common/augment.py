"""Augmentation that any method may want, on the device and for a whole batch: crop, flip, turn, normalise, erase.

Each function takes what was drawn for each image, so it is plain arithmetic. Draw with a key per image
(`image_keys`): then what happens to an image depends on neither the batch's size nor how devices split it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num, PRNGKeyArray, Shaped


def image_keys(key: PRNGKeyArray, batch_size: int) -> Key[Array, " B"]:
    """A key [B] for each image of a batch; image i has the same key in a batch of any size."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch_size))


def uniform_integers(uniform: Float[Array, "*shape"], bound: Int[Array, "*other"] | int) -> Int[Array, "*shape"]:
    """Integers 0..bound - 1 from uniform numbers in [0, 1): several draws of an image can share one call."""
    return jnp.floor(uniform * bound).astype(jnp.int32)


def flip_horizontal(images: Shaped[Array, "B h w c"], flipped: Bool[Array, " B"]) -> Shaped[Array, "B h w c"]:
    """The images, those `flipped` mirrored left to right."""
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def padded_crop(
    images: Shaped[Array, "B h w c"],
    top: Int[Array, " B"],
    left: Int[Array, " B"],
    padding: int,
    mode: str = "constant",
) -> Shaped[Array, "B h w c"]:
    """Crops of the images' own size out of the images padded by `padding` pixels on each side.

    Args:
      images: any dtype.
      top: first row of each crop in the padded image, 0..2 * padding; `padding` leaves the image where it is.
      left: first column, alike.
      padding: in pixels.
      mode: of `jnp.pad`: "constant" (zeros), "reflect" or "edge".
    """
    if not padding:
        return images
    height, width, channels = images.shape[1:]
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode)

    def crop(image: Array, row: Array, column: Array) -> Array:
        return jax.lax.dynamic_slice(image, (row, column, 0), (height, width, channels))

    return jax.vmap(crop)(padded, top, left)


def rotate_and_crop(
    image: Num[Array, "H W c"], degrees: Float[Array, ""], offset: Int[Array, "2"], height: int, width: int
) -> Num[Array, "h w c"]:
    """The image turned counter-clockwise about its centre, then [height, width] of it from `offset` (top, left) on.

    Nearest pixel, zeros where the image has none, size unchanged by the turn: Pillow's `rotate`.
    """
    rows, columns = image.shape[:2]
    radians = -jnp.deg2rad(degrees)
    cosine, sine = jnp.cos(radians), jnp.sin(radians)
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    y, x = y + offset[0] - rows / 2, x + offset[1] - columns / 2
    from_column = jnp.floor(cosine * x + sine * y + columns / 2).astype(jnp.int32)
    from_row = jnp.floor(-sine * x + cosine * y + rows / 2).astype(jnp.int32)
    inside = (from_row >= 0) & (from_row < rows) & (from_column >= 0) & (from_column < columns)
    taken = image[jnp.clip(from_row, 0, rows - 1), jnp.clip(from_column, 0, columns - 1)]
    return jnp.where(inside[..., None], taken, jnp.zeros_like(taken))


def normalize(images: Num[Array, "B h w c"], mean: Sequence[float], std: Sequence[float]) -> Float[Array, "B h w c"]:
    """float32 (x / 255 - mean) / std of pixels 0..255, with `mean` and `std` per channel in units of [0, 1]."""
    shift, scale = (jnp.asarray(values, jnp.float32)[None, None, None] for values in (mean, std))
    return (images.astype(jnp.float32) / 255.0 - shift) / scale


def inside_boxes(
    height: int,
    width: int,
    top: Int[Array, " B"],
    bottom: Int[Array, " B"],
    left: Int[Array, " B"],
    right: Int[Array, " B"],
) -> Bool[Array, "B h w"]:
    """Whether each pixel lies in its image's box: rows top..bottom - 1, columns left..right - 1."""
    rows, columns = jnp.arange(height)[None], jnp.arange(width)[None]
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    in_columns = (columns >= left[:, None]) & (columns < right[:, None])
    return in_rows[:, :, None] & in_columns[:, None, :]
