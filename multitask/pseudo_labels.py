"""Pseudo-labels: clusters of whitened features, and weights that make up for clusters of different sizes.

Source: DeepCluster [Caron et al. 2018].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from common.errors import UserError
from multitask import kmeans
from multitask.metric_regularizer import norm

WHITENING_EPSILON = 1e-5


class Whitened(NamedTuple):
    """Unit rows [N, d], and the d largest eigenvalues of the covariance, largest first."""

    rows: Float[Array, "N d"]
    eigenvalues: Float[Array, " d"]


def pca_whiten(features: Float[Array, "N C"], dim: int) -> Whitened:
    """Centre, project on the `dim` main axes of X^T X / N, divide by sqrt(eigenvalue + 1e-5), normalise each row.

    The signs of the axes are arbitrary; distances between rows are not.
    """
    centred = features - jnp.mean(features, axis=0, keepdims=True)
    covariance = jnp.matmul(centred.T, centred, precision=jax.lax.Precision.HIGHEST) / features.shape[0]
    values, axes = jnp.linalg.eigh(covariance)
    values, axes = values[::-1][:dim], axes[:, ::-1][:, :dim]
    projected = jnp.matmul(centred, axes, precision=jax.lax.Precision.HIGHEST)
    return Whitened(norm(projected / jnp.sqrt(jnp.maximum(values, 0.0) + WHITENING_EPSILON)[None]), values)


def cluster_weights(labels: Int[Array, " N"], num_clusters: int) -> Float[Array, " N"]:
    """w_i = N / (C+ count(label_i)), C+ the number of clusters with members: each of these weighs the same."""
    counts = jnp.bincount(labels, length=num_clusters)
    nonempty = jnp.sum(counts > 0)
    return labels.shape[0] / (nonempty * counts[labels]).astype(jnp.float32)


def assign_pseudo_labels(
    features: Float[Array, "N C"], num_clusters: int, dim: int, key: PRNGKeyArray, iterations: int = 20
) -> Int[Array, " N"]:
    """The k-means cluster of each image, from its whitened features; empty clusters take the farthest images.

    Raises UserError for fewer images than clusters.
    """
    if features.shape[0] < num_clusters:
        raise UserError(
            f"config.clustering_task.num_clusters is {num_clusters}, but there are only {features.shape[0]} images."
        )
    rows = pca_whiten(features, dim).rows
    return kmeans.kmeans(key, rows, num_clusters, iterations=iterations, empty="farthest").assignments
