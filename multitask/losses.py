"""The losses of the pretext tasks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def reconstruction_loss(
    predicted: Float[Array, "*shape"], target: Float[Array, "*shape"], mask: Float[Array, "n H W 1"] | None = None
) -> Float[Array, ""]:
    """Mean squared error over all elements, or over those where `mask` is 1 (some must be)."""
    squares = (predicted - target) ** 2
    if mask is None:
        return jnp.mean(squares)
    return jnp.sum(mask * squares) / (predicted.shape[-1] * jnp.maximum(jnp.sum(mask), 1.0))


def cross_entropy(logits: Float[Array, "n C"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
    """logsumexp(logits) - logits[label] of each row, in nats."""
    picked = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def weighted_mean(values: Float[Array, " n"], weights: Float[Array, " n"]) -> Float[Array, ""]:
    """Σ w v / Σ w; 0 where all weights are 0."""
    total = jnp.sum(weights)
    return jnp.sum(weights * values) / jnp.where(total > 0, total, 1.0)


def discriminator_loss(real: Float[Array, " n"], fake: Float[Array, " n"]) -> Float[Array, ""]:
    """mean softplus(-D(prior sample)) + mean softplus(D(code)) [Makhzani et al. 2015]."""
    return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake))


def generator_loss(fake: Float[Array, " n"]) -> Float[Array, ""]:
    """mean softplus(-D(code)): the encoder wants its codes to pass for samples of the prior."""
    return jnp.mean(jax.nn.softplus(-fake))
