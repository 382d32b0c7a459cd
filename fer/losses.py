"""Losses of valence and arousal, of categories, and the penalty of the baseline without transport."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


class Agreement(NamedTuple):
    """Per output, over a batch: mean squared error, Pearson and concordance correlation."""

    mse: Float[Array, " k"]
    pcc: Float[Array, " k"]
    ccc: Float[Array, " k"]


def agreement(scores: Float[Array, "B k"], labels: Float[Array, "B k"]) -> Agreement:
    """With the official code's mixture of divisors: deviations by B - 1, the mean product by B.

    So PCC is (B - 1) / B times the true one. Constant scores or labels give nan.
    """
    mean_s, mean_y = jnp.mean(scores, axis=0), jnp.mean(labels, axis=0)
    std_s, std_y = jnp.std(scores, axis=0, ddof=1), jnp.std(labels, axis=0, ddof=1)
    pcc = jnp.mean((scores - mean_s[None]) * (labels - mean_y[None]), axis=0) / (std_s * std_y)
    ccc = 2.0 * std_s * std_y * pcc / (std_s**2 + std_y**2 + (mean_s - mean_y) ** 2)
    return Agreement(jnp.mean((scores - labels) ** 2, axis=0), pcc, ccc)


def correlation_losses(of: Agreement) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """1 - the mean PCC and 1 - the mean CCC over valence and arousal."""
    return 1.0 - jnp.mean(of.pcc), 1.0 - jnp.mean(of.ccc)


def valence_arousal_loss(
    scores: Float[Array, "B k"], labels: Float[Array, "B k"], guard: bool = False
) -> Float[Array, ""]:
    """MSE of valence + MSE of arousal + half of the two correlation losses.

    With `guard`, a batch whose labels are all alike counts its MSE only (its correlation is 0 / 0).
    """
    if not guard:
        found = agreement(scores, labels)
        return jnp.sum(found.mse) + 0.5 * sum(correlation_losses(found))
    varied = jnp.all(jnp.std(labels, axis=0) > 0) & jnp.all(jnp.std(scores, axis=0) > 0)
    # A ramp in place of what does not vary: its derivative is finite, and not used.
    ramp = jnp.arange(labels.shape[0], dtype=scores.dtype)[:, None]
    found = agreement(jnp.where(varied, scores, ramp), jnp.where(varied, labels, ramp))
    correlations = 0.5 * sum(correlation_losses(found))
    return jnp.sum(jnp.mean((scores - labels) ** 2, axis=0)) + jnp.where(varied, correlations, 0.0)


def squared_errors(scores: Float[Array, "B k"], labels: Float[Array, "B k"]) -> Float[Array, " B"]:
    """Of each frame, the mean over its outputs."""
    return jnp.mean((scores - labels) ** 2, axis=1)


def cross_entropies(logits: Float[Array, "B k"], labels: Int[Array, " B"]) -> Float[Array, " B"]:
    """Of each frame."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def residual_penalty(
    scores: Float[Array, "B k"], labels: Float[Array, "B k"], members: Float[Array, "N B"]
) -> Float[Array, ""]:
    """Mean over identities and outputs of the squared mean residual: 0 if nobody is over- or underestimated."""
    sizes = jnp.sum(members, axis=1, keepdims=True)
    residual = members @ (scores - labels) / jnp.maximum(sizes, 1.0)
    present = jnp.maximum(jnp.sum(sizes > 0), 1)
    return jnp.sum(jnp.mean(residual**2, axis=1)) / present
