"""Losses that pull images of one class together and push others apart, for fine-tuning an embedding."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from multitask.metric_regularizer import norm

LOSSES = ("npair", "triplet")


def npair(anchors: Float[Array, "n d"], positives: Float[Array, "n d"], l2: float = 0.02) -> Float[Array, ""]:
    """N-pair loss [Sohn 2016]: mean_i [log sum_j exp(a_i . p_j) - a_i . p_i] + l2 / 4 (mean |a|^2 + mean |p|^2).

    One pair of each class; embeddings are not normalised.
    """
    products = anchors @ positives.T
    apart = jax.nn.logsumexp(products, axis=1) - jnp.diagonal(products)
    squares = jnp.mean(jnp.sum(anchors**2, -1)) + jnp.mean(jnp.sum(positives**2, -1))
    return jnp.mean(apart) + l2 / 4 * squares


def semi_hard_triplet(
    embeddings: Float[Array, "n d"], labels: Int[Array, " n"], margin: float = 0.2
) -> Float[Array, ""]:
    """Triplet loss with semi-hard negatives [Schroff et al. 2015] on unit embeddings and squared distances.

    For each ordered pair of a class the negative is the nearest one that is farther than the positive, or where there
    is none, the farthest one. Mean over all pairs of max(0, margin + d_ap - d_an); 0 without a pair. The gradient goes
    through all three embeddings, and not through the choice.
    """
    unit = norm(embeddings)
    distances = jnp.maximum(2 - 2 * unit @ unit.T, 0.0)
    same = labels[:, None] == labels[None]
    pair = same & ~jnp.eye(len(labels), dtype=bool)
    chosen_by = jax.lax.stop_gradient(distances)
    farther = ~same[:, None] & (chosen_by[:, None] > chosen_by[:, :, None])  # [anchor, positive, negative]
    nearest = jnp.argmin(jnp.where(farther, chosen_by[:, None], jnp.inf), axis=-1)
    farthest = jnp.argmax(jnp.where(same, -jnp.inf, chosen_by), axis=-1)
    negative = jnp.where(jnp.any(farther, axis=-1), nearest, farthest[:, None])
    away = jnp.take_along_axis(distances, negative, axis=1)
    violation = jnp.maximum(margin + distances - away, 0.0)
    return jnp.sum(jnp.where(pair, violation, 0.0)) / jnp.maximum(jnp.sum(pair), 1)
