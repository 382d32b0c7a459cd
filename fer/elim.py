"""ELIM: features of the target identities shifted by what their transport costs, then the same header's risk.

Kim and Song, "Optimal Transport-based Identity Matching for Identity-invariant Facial Expression Recognition", NeurIPS
2022; formulas as in the official code.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_EPSILON = 1e-6


def shifted_features(
    features: Float[Array, "B d"], shift: Float[Array, " B"], members: Float[Array, "N B"]
) -> Float[Array, "B d"]:
    """Target rows as (z - shift) / (rms + 1e-6), where rms is over the row's own d values; reference rows as they are.

    Gradients flow through the difference and the rms, not through the shift (see `matching.match`).
    """
    moved = features - shift[:, None]
    squares = jnp.mean(moved * moved, axis=1, keepdims=True)
    rms = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)  # no nan in the derivative at 0
    is_target = jnp.sum(members[1:], axis=0)[:, None] > 0
    return jnp.where(is_target, moved / (rms + _EPSILON), features)


def identity_risk(losses: Float[Array, " B"], members: Float[Array, "N B"]) -> Float[Array, ""]:
    """Sum over the groups (not their mean) of each group's mean loss; empty groups give 0."""
    sizes = jnp.sum(members, axis=1)
    return jnp.sum(jnp.sum(members * losses[None], axis=1) / jnp.maximum(sizes, 1.0))


def warm_up(step: Int[Array, ""] | int, start: int, full: int) -> Float[Array, ""]:
    """Weight of the second update: 0 before `start`, then step / full, 1 from `full` on.

    It jumps from 0 to start / full, as in the official code.
    """
    step = jnp.asarray(step)
    rising = step / max(full, 1)
    return jnp.where(step < start, 0.0, jnp.where(step < full, rising, 1.0)).astype(jnp.float32)


def first_matching_step(start: int, full: int) -> int:
    """The first step with a second update."""
    return start if start > 0 or full == 0 else 1
