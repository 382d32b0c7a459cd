"""The memory bank: one averaged descriptor per position, built once with the untrained descriptor and never changed.

Its size does not depend on the number of training images.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.cluster import KMeans

from anomaly.hypersphere import pairwise_sq_distances

KMEANS_ITERATIONS = 3000  # official code


def running_mean(
    mean: Float[Array, "*shape"], seen: Float[Array, ""], batch_sum: Float[Array, "*shape"], count: Float[Array, ""]
) -> Float[Array, "*shape"]:
    """The mean over all images so far, from the mean over `seen` images and the sum over `count` further ones.

    With equal batches this is the official C_i = (i C_{i-1} + batch mean) / (i + 1).
    """
    return mean + (batch_sum - count * mean) / (seen + count)


def flatten_bank(mean: Float[Array, "h w D"]) -> Float[Array, "M D"]:
    """Rows in row-major order of the positions, M = h w."""
    return mean.reshape(-1, mean.shape[-1])


def compress_bank(
    rows: Float[np.ndarray, "M D"], gamma_c: int, seed: int, restarts: int
) -> Float[np.ndarray, "compressed D"]:
    """The M // γ_c centres of a seeded K-means (k-means++ starts, the best of `restarts`) over the rows; γ_c = 1: rows.

    The official code does not seed it and takes scikit-learn's default number of restarts, which changed from 10 to 1.
    """
    if gamma_c == 1:
        return rows
    starts: Any = restarts
    clusters = KMeans(len(rows) // gamma_c, n_init=starts, max_iter=KMEANS_ITERATIONS, random_state=seed)
    return clusters.fit(rows).cluster_centers_.astype(rows.dtype)


def nearest_ema(
    bank: Float[Array, "M D"], phi: Float[Array, "N D"], coefficient: Float[Array, ""]
) -> Float[Array, "M D"]:
    """C_i[m] = (1 - β) C_{i-1}[m] + β (the patch of image i that is nearest to C_{i-1}[m]).

    Our reading of the paper's text, for which no code was published and whose β is unknown; useful where images are
    not aligned and the mean over a position says nothing.
    """
    nearest = jnp.argmin(pairwise_sq_distances(bank[None], phi)[0], axis=-1)
    return (1 - coefficient) * bank + coefficient * phi[nearest]
