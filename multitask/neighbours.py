"""Nearest neighbours by exhaustive search, and what is measured with them: Recall@K and the k-NN classifier."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from common.errors import UserError
from multitask.metric_regularizer import norm

METRICS = ("cosine", "euclidean")
_BLOCK = 1024  # queries whose similarities to everything are in memory at once


@functools.partial(jax.jit, static_argnames=("k", "metric", "exclude_self"))
def _block(
    queries: Float[Array, "q d"], base: Float[Array, "n d"], places: Int[Array, " q"], k: int, metric: str,
    exclude_self: bool,
) -> tuple[Float[Array, "q k"], Int[Array, "q k"]]:  # fmt: skip
    similarity = jnp.matmul(queries, base.T, precision=jax.lax.Precision.HIGHEST)
    if metric == "euclidean":
        similarity = 2 * similarity - jnp.sum(queries**2, -1)[:, None] - jnp.sum(base**2, -1)[None]
    if exclude_self:
        similarity = similarity.at[jnp.arange(len(places)), places].set(-jnp.inf)
    values, indices = jax.lax.top_k(similarity, k)
    return values, indices


def nearest(
    queries: Float[Array, "q d"],
    base: Float[Array, "n d"],
    k: int,
    *,
    metric: str = "cosine",
    exclude_self: bool = False,
) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
    """Similarities and places in `base` of the k nearest rows, nearest first; of equals the first in `base`.

    Args:
      queries, base: embeddings; "cosine" normalises both.
      k: at most as many as there are (others).
      metric: "cosine" (similarity: the cosine) or "euclidean" (similarity: minus the squared distance).
      exclude_self: `queries` are `base`; each row is left out of its own neighbours *by its place*, so that duplicates
        still find each other.
    """
    available = base.shape[0] - exclude_self
    if k > available:
        raise UserError(f"{k} nearest neighbours are asked for, but there are only {available} images to find them in.")
    if metric == "cosine":
        queries, base = norm(queries), norm(base)
    found = []
    for first in range(0, queries.shape[0], _BLOCK):
        places = np.minimum(np.arange(first, first + min(_BLOCK, queries.shape[0])), queries.shape[0] - 1)
        found.append(jax.device_get(_block(queries[places], base, places, k, metric, exclude_self)))
    similarity, indices = (np.concatenate(parts)[: queries.shape[0]] for parts in zip(*found, strict=True))
    return similarity, indices


def recall_at_k(
    embeddings: Float[Array, "n d"], labels: Integer[np.ndarray, " n"], ks: Sequence[int], metric: str = "cosine"
) -> dict[int, float]:
    """{K: share of images with at least one of their class among their K nearest others} [Jégou et al. 2011].

    The only image of a class counts as a miss.
    """
    _, indices = nearest(embeddings, embeddings, max(ks), metric=metric, exclude_self=True)
    hits: Bool[np.ndarray, "n k"] = labels[indices] == labels[:, None]
    return {int(k): float(hits[:, :k].any(1).mean()) for k in ks}


def knn_scores(
    train: Float[Array, "m d"],
    labels: Integer[np.ndarray, " m"],
    test: Float[Array, "n d"],
    num_classes: int,
    k: int = 200,
    temperature: float = 0.07,
) -> Float[np.ndarray, "n c"]:
    """Votes for each class of the k nearest training images by cosine, each with weight exp(cos / temperature) relative
    to the nearest one [Wu et al. 2018]; k is at most the number of training images. The class is the argmax, of equals
    the first."""
    similarity, indices = nearest(test, train, min(k, train.shape[0]))
    weights = np.exp((similarity - similarity[:, :1]).astype(np.float64) / temperature)
    votes = np.zeros((len(weights), num_classes))
    np.add.at(votes, (np.arange(len(weights))[:, None], labels[indices]), weights)
    return votes
