"""What the pretext tasks see in place of an image: turns, shuffled tiles, holes, grey. Images are [n, H, W, C]."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, Shaped


def rotate_all(images: Shaped[Array, "n s s c"]) -> Shaped[Array, "n 4 s s c"]:
    """All four copies of each image; copy k is turned by k quarter turns counter-clockwise as displayed."""
    transposed = jnp.swapaxes(images, 1, 2)
    return jnp.stack([images, transposed[:, ::-1], images[:, ::-1, ::-1], transposed[:, :, ::-1]], axis=1)


def rotate_quarter(images: Shaped[Array, "n s s c"], turns: Int[Array, " n"]) -> Shaped[Array, "n s s c"]:
    """Each image turned by its number of quarter turns (0..3) counter-clockwise as displayed."""
    return rotate_all(images)[jnp.arange(images.shape[0]), turns]


@functools.cache
def jigsaw_permutations(grid: int, count: int) -> Int32[np.ndarray, "P T"]:
    """`count` permutations of grid x grid tiles, far from one another in Hamming distance.

    Starts with the identity; each next one has the largest smallest distance to those before it, the
    lexicographically first of equals. For all permutations (count = (grid²)!) they come in lexicographic order.
    """
    every = np.array(list(itertools.permutations(range(grid * grid))), np.int8)
    if count == len(every):
        return every.astype(np.int32)
    chosen, nearest = [0], np.sum(every != every[0], axis=1)
    while len(chosen) < count:
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, np.sum(every != every[chosen[-1]], axis=1))
    return every[chosen].astype(np.int32)


def jigsaw_shuffle(
    images: Shaped[Array, "n H W c"], permutations: Int[Array, "n T"], grid: int
) -> Shaped[Array, "n H W c"]:
    """Tile p of the result (in row-major order) is tile permutations[i, p] of image i; `grid` divides both sides."""
    n, height, width, channels = images.shape
    rows, columns = height // grid, width // grid
    tiles = images.reshape(n, grid, rows, grid, columns, channels).swapaxes(2, 3)
    tiles = tiles.reshape(n, grid * grid, rows, columns, channels)
    moved = jnp.take_along_axis(tiles, permutations[:, :, None, None, None], axis=1)
    return moved.reshape(n, grid, grid, rows, columns, channels).swapaxes(2, 3).reshape(images.shape)


def hole_mask(corners: Int[Array, "n 2"], side: int, height: int, width: int) -> Float[Array, "n H W 1"]:
    """1 in the square hole of this side whose upper left pixel is `corners` (row, column), 0 elsewhere."""
    rows, columns = (jnp.arange(size)[None] for size in (height, width))
    top, left = corners[:, :1], corners[:, 1:]
    inside = ((rows >= top) & (rows < top + side))[:, :, None] & ((columns >= left) & (columns < left + side))[:, None]
    return inside.astype(jnp.float32)[..., None]


def mask_hole(images: Float[Array, "n H W c"], mask: Float[Array, "n H W 1"]) -> Float[Array, "n H W c"]:
    """The images with 0 in the hole."""
    return images * (1 - mask)


def to_gray(images: Float[Array, "n H W 3"]) -> Float[Array, "n H W 3"]:
    """0.299 R + 0.587 G + 0.114 B in all three channels; of pixels that are not normalised."""
    weights = jnp.array([0.299, 0.587, 0.114], images.dtype)
    grey = jnp.sum(images * weights[None, None, None], axis=-1, keepdims=True)
    return jnp.broadcast_to(grey, images.shape)
