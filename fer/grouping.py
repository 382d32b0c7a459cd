"""Which frames of a batch form the reference identity and the target identities, and how often each frame counts.

Groups keep the batch's own rows: `members` [N, B] holds how often row j counts in group k (0: not at all), so that
everything behind it is a masked sum of a fixed shape, whatever the sizes of the groups.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

ALIGNMENTS = ("none", "max_filling", "gumbel")
AGE_EDGES = (18.0, 30.0, 40.0, 50.0, 60.0, 85.0)  # half-open bins [18, 30), [30, 40) ...
_TINY = 1e-20


class Groups(NamedTuple):
    """Group 0 is the reference, the others are targets; a group without members is empty."""

    members: Float[Array, "N B"]
    rank: Float[Array, " B"]  # order within a group; the official shift is that of the group's first frame


def draw_identities(
    key: PRNGKeyArray, identity: Int[Array, " B"], count: int
) -> tuple[Int[Array, " N"], Int[Array, ""]]:
    """`count` distinct identities of a batch in random order, and how many there really are.

    Args:
      identity: code of each row; -1 belongs to nobody (an age outside the bins).
      count: N, wanted; where the batch has fewer, the list is filled with -1.
    """
    first = jnp.argmax(identity[:, None] == identity[None, :], axis=1) == jnp.arange(identity.shape[0])
    score = jnp.where(first & (identity >= 0), jax.random.uniform(key, identity.shape), -1.0)
    best, rows = jax.lax.top_k(score, min(count, identity.shape[0]))
    picked = jnp.where(best >= 0, identity[rows], -1)
    picked = jnp.pad(picked, (0, count - picked.shape[0]), constant_values=-1)
    return picked, jnp.sum(picked >= 0)


def make_groups(identity: Int[Array, " B"], picked: Int[Array, " N"]) -> Groups:
    """Groups of the picked identities with all their frames, in the batch's order."""
    is_member = (picked[:, None] == identity[None, :]) & (picked[:, None] >= 0)
    return Groups(is_member.astype(jnp.float32), jnp.arange(identity.shape[0], dtype=jnp.float32))


def max_filling(groups: Groups) -> Groups:
    """Every group extended to the size of the largest by repeating its last frame (that row then counts more)."""
    members = groups.members
    sizes = jnp.sum(members, axis=1)
    last = jnp.argmax(jnp.where(members > 0, groups.rank[None], -jnp.inf), axis=1)
    missing = jnp.where(sizes > 0, jnp.max(sizes) - sizes, 0.0)
    return groups._replace(members=members + jax.nn.one_hot(last, members.shape[1]) * missing[:, None])


def gumbel_top_k(groups: Groups, labels: Float[Array, "B k"], uniform: Float[Array, " B"], top_k: int) -> Groups:
    """At most `top_k` frames of each group, drawn without replacement, likely the intense ones (official code).

    Args:
      labels: valence and arousal; a frame's intensity is their length.
      uniform: in [0, 1), one number for each frame.
    """
    # Normalising the intensities in a group, and the softmax with temperature 0.5, keep the order of the scores.
    intensity = jnp.log(jnp.sqrt(jnp.sum(labels * labels, axis=1)))
    score = intensity - jnp.log(-jnp.log(uniform + _TINY) + _TINY)
    # Frames of zero intensity come last, in the batch's order.
    order = jnp.argsort(jnp.argsort(-score, stable=True), stable=True).astype(jnp.float32)
    within = (groups.members > 0) & _among_first(groups.members > 0, order, top_k)
    return Groups(within.astype(jnp.float32), order)


def _among_first(is_member: Bool[Array, "N B"], order: Float[Array, " B"], count: int) -> Bool[Array, "N B"]:
    """Whether fewer than `count` members of the group come before each row."""
    before = (order[None, :] < order[:, None]).astype(jnp.float32)  # [row, other]
    return is_member.astype(jnp.float32) @ before.T < count


def age_bins(age: Float[Array, " n"], edges: tuple[float, ...] = AGE_EDGES) -> Int[Array, " n"]:
    """Number of the bin [edges[i], edges[i + 1]) that each age lies in, -1 outside all of them (and for nan)."""
    limits = jnp.asarray(edges)
    found = jnp.searchsorted(limits, age, side="right") - 1
    inside = (age >= limits[0]) & (age < limits[-1])
    return jnp.where(inside, found, -1).astype(jnp.int32)


def everybody(identity: Int[Array, " B"]) -> Float[Array, "B B"]:
    """`members` of as many groups as there are rows: one for each identity, the others empty."""
    same = (identity[:, None] == identity[None, :]) & (identity[:, None] >= 0)
    is_first = jnp.argmax(same, axis=1) == jnp.arange(identity.shape[0])
    return (same & is_first[:, None]).astype(jnp.float32)
