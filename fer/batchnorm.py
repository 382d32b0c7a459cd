"""Batch normalisation as PyTorch computes it, over the whole batch or over groups of its rows.

A group's running variance is the unbiased one, as in PyTorch (Flax stores the biased one, which for groups of two to
five frames is another number).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-5
MOMENTUM = 0.1


def group_statistics(
    x: Float[Array, "B C"], members: Float[Array, "N B"]
) -> tuple[Float[Array, "N C"], Float[Array, "N C"]]:
    """Mean and biased variance of each group's rows; 0 for empty groups. A single frame has variance exactly 0."""
    share = members / jnp.maximum(jnp.sum(members, axis=1, keepdims=True), 1.0)
    mean = jnp.matmul(share, x, precision=jax.lax.Precision.HIGHEST)
    deviation = x - _of_rows(members, mean)
    return mean, jnp.matmul(share, deviation * deviation, precision=jax.lax.Precision.HIGHEST)


def normalize_groups(
    x: Float[Array, "B C"],
    members: Float[Array, "N B"],
    mean: Float[Array, "N C"],
    variance: Float[Array, "N C"],
) -> Float[Array, "B C"]:
    """Each row by its own group's statistics; rows of no group become 0."""
    inside = jnp.sum(members, axis=0)[:, None] > 0
    scale = jax.lax.rsqrt(jnp.where(inside, _of_rows(members, variance), 1.0) + EPSILON)
    return jnp.where(inside, x - _of_rows(members, mean), 0.0) * scale


def update_running(
    running: Float[Array, " C"], values: Float[Array, "N C"], sizes: Float[Array, " N"]
) -> Float[Array, " C"]:
    """R <- 0.9 R + 0.1 value, for one non-empty group after the other."""
    for k in range(values.shape[0]):
        running = jnp.where(sizes[k] > 0, (1 - MOMENTUM) * running + MOMENTUM * values[k], running)
    return running


class BatchNorm(nn.Module):
    """Over the batch, or over groups of rows with statistics of their own; running statistics in evaluation."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B *space C"], train: bool, members: Float[Array, "N B"] | None = None
    ) -> Float[Array, "B *space C"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        variance = self.variable("batch_stats", "var", jnp.ones, (channels,))
        lead = (1,) * (x.ndim - 1)
        if not train:
            centred = x - mean.value.reshape(*lead, channels)
            normal = centred * jax.lax.rsqrt(variance.value.reshape(*lead, channels) + EPSILON)
        elif members is None:
            axes = tuple(range(x.ndim - 1))
            of_batch = jnp.mean(x, axis=axes, keepdims=True)
            centred = x - of_batch
            spread = jnp.mean(centred * centred, axis=axes, keepdims=True)
            normal = centred * jax.lax.rsqrt(spread + EPSILON)
            count = x.size // channels
            self._update(of_batch.reshape(1, -1), spread.reshape(1, -1), jnp.full((1,), float(count), x.dtype))
        else:
            means, spreads = group_statistics(x, members)
            normal = normalize_groups(x, members, means, spreads)
            self._update(means, spreads, jnp.sum(members, axis=1))
        return normal * scale.reshape(*lead, channels) + bias.reshape(*lead, channels)

    def _update(self, means: Array, spreads: Array, sizes: Array) -> None:
        if self.is_initializing() or not self.is_mutable_collection("batch_stats"):
            return
        unbiased = spreads * (sizes / jnp.maximum(sizes - 1.0, 1.0))[:, None]
        for name, values in (("mean", means), ("var", unbiased)):
            running = self.get_variable("batch_stats", name)
            self.put_variable("batch_stats", name, update_running(running, jax.lax.stop_gradient(values), sizes))


def _of_rows(members: Float[Array, "N B"], values: Float[Array, "N C"]) -> Float[Array, "B C"]:
    """The value of each row's group, 0 for rows of none."""
    return jnp.matmul((members > 0).astype(values.dtype).T, values, precision=jax.lax.Precision.HIGHEST)
