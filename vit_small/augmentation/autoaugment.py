"""AutoAugment (Cubuk et al. 2019): one of 25 sub-policies for each image, two operations each with a probability."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, UInt8

from common.augment import uniform_integers
from vit_small.augmentation.operations import apply_operations
from vit_small.augmentation.policies import INDEX, policy_table


class Choice(NamedTuple):
    """The two operations of each image, in order."""

    operation: Int[Array, "B 2"]
    level: Int[Array, "B 2"]
    sign: Int[Array, "B 2"]


def draw_choice(keys: Key[Array, " B"], policy: str, random_rotation_sign: bool) -> Choice:
    """What a policy of `policies.POLICIES` does to each image; an operation that its coin refuses is "identity".

    Args:
      keys: one for each image.
      policy: its name.
      random_rotation_sign: whether half the rotations are clockwise; the official code has none.
    """
    probabilities, operations, levels = (jnp.asarray(table) for table in policy_table(policy))

    uniform = jax.vmap(lambda key: jax.random.uniform(key, (5,)))(keys)
    sub_policy = uniform_integers(uniform[:, 0], len(operations))
    happens = uniform[:, 1:3] < probabilities[sub_policy]
    operation = jnp.where(happens, operations[sub_policy], INDEX["identity"])
    sign = jnp.where(uniform[:, 3:5] < 0.5, -1, 1)
    if not random_rotation_sign:
        sign = jnp.where(operation == INDEX["rotate"], 1, sign)
    return Choice(operation, levels[sub_policy], sign)


def apply_choice(images: UInt8[Array, "B h w c"], choice: Choice) -> UInt8[Array, "B h w c"]:
    """The images after both operations."""

    def one(planes: Array, turn: Choice) -> tuple[Array, None]:
        return apply_operations(planes, *turn), None

    # A loop, not for its length: unrolled, XLA computes the first image anew wherever the second operation reads it.
    turns = jax.tree.map(jnp.transpose, choice)
    planes, _ = jax.lax.scan(one, jnp.moveaxis(images, -1, 0), turns)
    return jnp.moveaxis(planes, 0, -1)
