"""k-means: k-means++ seeding, Lloyd's iterations, two rules for clusters that run empty.

Used for pseudo-labels in pre-training and for the clusters of an embedding. Distances are squared Euclidean; of equally
near centroids the first is taken.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from common.errors import UserError

EMPTY_RULES = ("keep", "farthest")
_BLOCK = 4096  # rows whose distances to all centroids are in memory at once


class Clusters(NamedTuple):
    """Cluster of each row, centroids [k, d] after the last update, and the sum of squared distances before it."""

    assignments: Int[Array, " n"]
    centroids: Float[Array, "k d"]
    inertia: Float[Array, ""]


def assign(rows: Float[Array, "n d"], centroids: Float[Array, "k d"]) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """The nearest centroid of each row and the squared distance to it; never more than a block of [rows, k] at once."""
    squares = jnp.sum(centroids**2, axis=-1)

    def nearest(row: Array) -> tuple[Array, Array]:
        products = jnp.matmul(centroids, row, precision=jax.lax.Precision.HIGHEST)
        distances = jnp.maximum(jnp.sum(row**2) + squares - 2 * products, 0.0)
        return jnp.argmin(distances).astype(jnp.int32), jnp.min(distances)

    return jax.lax.map(nearest, rows, batch_size=min(_BLOCK, rows.shape[0]))


def lloyd_step(rows: Float[Array, "n d"], centroids: Float[Array, "k d"], empty: str = "keep") -> Clusters:
    """One iteration: assign to the given centroids, then move each to the mean of its rows.

    Args:
      rows: to cluster.
      centroids: the current ones.
      empty: what an empty cluster gets. "keep": its old centroid. "farthest": going through the empty clusters in
        order, each takes the next row in decreasing order of the distance to its own centroid (the clusters that these
        rows come from are not recomputed in this iteration).
    """
    count = centroids.shape[0]
    assignments, distances = assign(rows, centroids)
    sizes = jax.ops.segment_sum(jnp.ones_like(distances), assignments, count)
    means = jax.ops.segment_sum(rows, assignments, count) / jnp.maximum(sizes, 1.0)[:, None]
    is_empty = sizes == 0
    if empty == "farthest":
        order = jnp.argsort(-distances, stable=True)
        turn = jnp.clip(jnp.cumsum(is_empty) - 1, 0, rows.shape[0] - 1)
        replacement = rows[order[turn]]
    else:
        replacement = centroids
    return Clusters(assignments, jnp.where(is_empty[:, None], replacement, means), jnp.sum(distances))


@functools.partial(jax.jit, static_argnames=("iterations", "empty"))
def lloyd(rows: Float[Array, "n d"], centroids: Float[Array, "k d"], iterations: int, empty: str = "keep") -> Clusters:
    """Iterations from these centroids until no assignment changes, at most `iterations` (at least one)."""

    def running(carry):
        done, changed, _ = carry
        return (done < iterations) & changed

    def step(carry):
        done, _, before = carry
        after = lloyd_step(rows, before.centroids, empty)
        return done + 1, jnp.any(after.assignments != before.assignments), after

    nothing = jnp.full(rows.shape[0], -1, jnp.int32)
    start = (0, jnp.asarray(True), Clusters(nothing, centroids, jnp.zeros((), rows.dtype)))
    return jax.lax.while_loop(running, step, start)[-1]


@functools.partial(jax.jit, static_argnames="count")
def plus_plus(key: PRNGKeyArray, rows: Float[Array, "n d"], count: int) -> Float[Array, "k d"]:
    """k-means++ [Arthur and Vassilvitskii 2007]: each next centroid is a row, drawn with its squared distance to the
    nearest centroid so far (uniformly where all distances are 0)."""
    first, key = jax.random.split(key)
    centroids = jnp.zeros((count, rows.shape[1]), rows.dtype)
    centroids = centroids.at[0].set(rows[jax.random.randint(first, (), 0, rows.shape[0])])

    def distances_to(centroid: Array) -> Array:
        return jnp.sum((rows - centroid[None]) ** 2, axis=-1)

    def add(place, carry):
        centroids, nearest = carry
        logits = jnp.where(jnp.any(nearest > 0), jnp.log(nearest), 0.0)
        chosen = rows[jax.random.categorical(jax.random.fold_in(key, place), logits)]
        return centroids.at[place].set(chosen), jnp.minimum(nearest, distances_to(chosen))

    return jax.lax.fori_loop(1, count, add, (centroids, distances_to(centroids[0])))[0]


def kmeans(
    key: PRNGKeyArray,
    rows: Float[Array, "n d"],
    num_clusters: int,
    *,
    iterations: int = 100,
    restarts: int = 1,
    empty: str = "keep",
) -> Clusters:
    """The best (smallest inertia, the first of equals) of `restarts` runs that start from k-means++.

    Raises:
      UserError: fewer rows than clusters.
    """
    if rows.shape[0] < num_clusters:
        raise UserError(
            f"k-means cannot make {num_clusters} clusters of {rows.shape[0]} images; ask for fewer clusters."
        )
    best = None
    for restart in range(restarts):
        start = plus_plus(jax.random.fold_in(key, restart), rows, num_clusters)
        found = lloyd(rows, start, iterations, empty)
        if best is None or found.inertia < best.inertia:
            best = found
    if best is None:
        raise UserError(f"k-means needs at least 1 run, but restarts is {restarts}.")
    return best
