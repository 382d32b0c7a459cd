"""Which maps of student and teacher can be compared, and what makes others comparable."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from common.errors import UserError

EPSILON = 1e-12


def check_points(student: tuple[Any, ...], teacher: tuple[Any, ...], least: int = 1) -> None:
    """Raise UserError unless there are equally many sensing points, at least `least`, of maps whose sides divide.

    `student`, `teacher`: anything with shapes [B, H, W, C].
    """
    check_number_of_points(student, teacher, least)
    for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
        for axis in (1, 2):
            small, large = sorted((s.shape[axis], t.shape[axis]))
            if large % small:
                raise UserError(_unpaired(i, s, t, "of which neither side is a multiple of the other"))


def check_number_of_points(student: tuple[Any, ...], teacher: tuple[Any, ...], least: int = 1) -> None:
    """Raise UserError unless both have equally many entries, at least `least`."""
    if len(student) != len(teacher) or len(student) < least:
        at_least = f", at least {least}," if least > 1 else ""
        raise UserError(
            f"the student has {len(student)} sensing points and the teacher {len(teacher)}, but a point of one is "
            f"paired with a point of the other: name as many{at_least} in config.student.taps and config.teacher.taps."
        )


def _unpaired(i: int, student: Any, teacher: Any, why: str) -> str:
    shapes = " and ".join(" x ".join(map(str, shape[1:])) for shape in (student.shape, teacher.shape))
    return (
        f"sensing point {i} of student and teacher cannot be paired: its maps are {shapes}, {why}; "
        "choose other config.student.taps, config.teacher.taps or networks."
    )


def same_size(
    student: Float[Array, "B h w c"], teacher: Float[Array, "B H W d"]
) -> tuple[Float[Array, "B k l c"], Float[Array, "B k l d"]]:
    """Both maps, the larger one averaged over windows down to the size of the other (our choice; equal sizes stay)."""
    height, width = (min(student.shape[axis], teacher.shape[axis]) for axis in (1, 2))
    return _averaged(student, height, width), _averaged(teacher, height, width)


def _averaged(x: Float[Array, "B H W c"], height: int, width: int) -> Float[Array, "B h w c"]:
    batch, high, wide, channels = x.shape
    if (high, wide) == (height, width):
        return x
    return x.reshape(batch, height, high // height, width, wide // width, channels).mean((2, 4))


def l2_normalize(x: Float[Array, "..."], axis: int | tuple[int, ...] = -1) -> Float[Array, "..."]:
    """x over its length along `axis`; the length has a floor inside its root, so that zeros stay zeros."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=axis, keepdims=True), EPSILON))


def batch_norm(
    x: Float[Array, "*n c"], gamma: Float[Array, " c"], beta: Float[Array, " c"], epsilon: float = 1e-5
) -> Float[Array, "*n c"]:
    """BatchNorm with the statistics of this batch over all axes but the last, for layers that only training has."""
    axes = tuple(range(x.ndim - 1))
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    gamma, beta = (jnp.expand_dims(values, axes) for values in (gamma, beta))
    return (x - mean) * jax.lax.rsqrt(variance + epsilon) * gamma + beta
