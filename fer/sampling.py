"""Which frames make up the batch of a step: so many identities with so many frames each, or all frames alike.

With many people and all frames alike, a batch shows most people once, and the matching of single frames is degenerate
(their prediction does not depend on them); hence the balanced sampler.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

SAMPLERS = ("identity_balanced", "uniform")


def frame_table(identity: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, "K F"], Int[np.ndarray, " K"]]:
    """Frames of each identity that has any, padded by 0 to the longest, and their numbers."""
    codes = [code for code in np.unique(identity) if code >= 0]
    places = [np.flatnonzero(identity == code) for code in codes]
    counts = np.array([len(own) for own in places], np.int32)
    table = np.zeros((len(codes), counts.max()), np.int32)
    for row, own in zip(table, places, strict=True):
        row[: len(own)] = own
    return table, counts


def balanced_batch(
    key: PRNGKeyArray,
    table: Int[Array, "K F"],
    counts: Int[Array, " K"],
    identities: int,
    frames: int,
) -> Int[Array, " B"]:
    """`frames` different frames of each of `identities` different people; who has fewer repeats them.

    Args:
      table, counts: of `frame_table`.

    Returns:
      Places among all frames, person by person; B = identities * frames.
    """
    of_people, of_frames = jax.random.split(key)
    people = jax.random.permutation(of_people, table.shape[0])[:identities]
    score = jax.random.uniform(of_frames, (identities, table.shape[1]))
    exists = jnp.arange(table.shape[1])[None] < counts[people][:, None]
    order = jnp.argsort(jnp.where(exists, score, jnp.inf), axis=1)
    places = jnp.arange(frames)[None] % counts[people][:, None]
    chosen = jnp.take_along_axis(order, places, axis=1)
    return jnp.take_along_axis(table[people], chosen, axis=1).reshape(-1)
