"""From distances to anomaly maps: soft-min certainty, enlargement, smoothing, image scores (official chain).

Enlargement and smoothing are linear and act on rows and columns separately, so both are one small matrix on each side.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float64
from scipy import ndimage

SIGMA = 4.0  # pixels of the network's input; SciPy cuts off at 4 sigma: 33 taps


def softmin_score(sq_distances: Float[Array, "*shape K"]) -> Float[Array, "*shape"]:
    """s = e_1 exp(-e_1) / Σ_k exp(-e_k) with e_k = √d_k, d the K smallest squared distances in ascending order."""
    distances = jnp.sqrt(sq_distances)
    return distances[..., 0] * jax.nn.softmax(-distances, axis=-1)[..., 0]


@functools.cache
def upsampling_matrix(small: int, large: int) -> Float64[np.ndarray, "large small"]:
    """Bilinear enlargement of one axis, half-pixel centres, clamped at the edge."""
    centres = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0, small - 1)
    below = np.minimum(np.floor(centres).astype(int), max(small - 2, 0))
    matrix = np.zeros((large, small))
    np.add.at(matrix, (np.arange(large), below), 1 - (centres - below))
    np.add.at(matrix, (np.arange(large), np.minimum(below + 1, small - 1)), centres - below)
    return matrix


@functools.cache
def gaussian_matrix(size: int, sigma: float = SIGMA) -> Float64[np.ndarray, "size size"]:
    """`scipy.ndimage.gaussian_filter1d` (mode "reflect", truncate 4) of one axis, as the matrix it is."""
    return ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0, mode="reflect", truncate=4.0)


def upsample_scores(scores: Float[Array, "B h w"], height: int, width: int) -> Float[Array, "B H W"]:
    """Scores at the size of the network's input."""
    rows, columns = scores.shape[1:]
    return _both_axes(scores, upsampling_matrix(rows, height), upsampling_matrix(columns, width))


def gaussian_smooth(maps: Float[Array, "B H W"], sigma: float = SIGMA) -> Float[Array, "B H W"]:
    """Each map smoothed as SciPy's `gaussian_filter` does."""
    return _both_axes(maps, *(gaussian_matrix(size, sigma) for size in maps.shape[1:]))


def anomaly_maps(scores: Float[Array, "B h w"], height: int, width: int, sigma: float = SIGMA) -> Float[Array, "B H W"]:
    """`gaussian_smooth(upsample_scores(...))` in one go: without the large map in between, for half the work."""
    rows, columns = scores.shape[1:]
    return _both_axes(
        scores,
        gaussian_matrix(height, sigma) @ upsampling_matrix(rows, height),
        gaussian_matrix(width, sigma) @ upsampling_matrix(columns, width),
    )


def image_scores(maps: Float[Array, "B H W"]) -> Float[Array, " B"]:
    """The largest value of each map."""
    return jnp.max(maps, axis=(1, 2))


def rescale_dataset(maps: Float[np.ndarray, "n H W"]) -> Float[np.ndarray, "n H W"]:
    """All maps of a set together to [0, 1], as the official code does before it measures anything; monotone."""
    low, high = maps.min(), maps.max()
    return (maps - low) / (high - low) if high > low else np.zeros_like(maps)


def _both_axes(maps: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    left, right = jnp.asarray(rows, maps.dtype), jnp.asarray(columns, maps.dtype)
    return jnp.einsum("Hh,bhw,Ww->bHW", left, maps, right, precision=lax.Precision.HIGHEST)
