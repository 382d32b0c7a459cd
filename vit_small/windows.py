"""Windows of a token grid, for Swin: partition, its inverse, the shift's mask and the index of relative positions."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

OTHER_REGION = -100.0  # added to logits between tokens that only the cyclic shift has brought together


def partition(grid: Float[Array, "B H W C"], window: int) -> Float[Array, "n T C"]:
    """Windows of an image one after the other, row by row. Raises ValueError where they do not tile the grid."""
    batch, height, width, channels = grid.shape
    if height % window or width % window:
        raise ValueError(f"windows of {window} do not tile a grid of {height} x {width}.")
    split = grid.reshape(batch, height // window, window, width // window, window, channels)
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)


def merge(windows: Float[Array, "n T C"], height: int, width: int, window: int) -> Float[Array, "B H W C"]:
    """The inverse of `partition`."""
    split = windows.reshape(-1, height // window, width // window, window, window, windows.shape[-1])
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])


def shift_mask(height: int, width: int, window: int, shift: int) -> Float[np.ndarray, "n T T"]:
    """For each window of the grid rolled by -shift: 0 within a region, -100 between regions."""

    def bands(side: int) -> Int[np.ndarray, " side"]:
        return np.repeat([0, 1, 2], [side - window, window - shift, shift])

    region = 3 * bands(height)[:, None] + bands(width)[None]
    split = region.reshape(height // window, window, width // window, window)
    split = split.transpose(0, 2, 1, 3).reshape(-1, window * window)
    return np.where(split[:, :, None] == split[:, None, :], 0.0, OTHER_REGION)


def relative_position_index(window: int) -> Int[np.ndarray, "T T"]:
    """Row of the bias table for (query, key): (dy + w - 1)(2w - 1) + dx + w - 1, with dy, dx = query - key."""
    place = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij"), axis=-1).reshape(-1, 2)
    difference = place[:, None] - place[None] + window - 1
    return difference[..., 0] * (2 * window - 1) + difference[..., 1]


def halves(grid: Float[Array, "B H W C"]) -> Float[Array, "B h w 4*C"]:
    """Each 2x2 neighbourhood in the channels, in Swin's order (0,0), (1,0), (0,1), (1,1) of [row, column]."""
    parts = [grid[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    return jnp.concatenate(parts, axis=-1)
