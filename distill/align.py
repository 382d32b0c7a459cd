"""Which of the student's singular vectors stand for the teacher's, and with which sign (KD-SVD, section 3).

A student with fewer layers may hold the same direction at another place of its spectrum, so every teacher vector takes
the candidate of the student that is most parallel to it. Nothing here differentiates through choices and signs.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from distill.pairing import l2_normalize


def cosines(student: Float[Array, "B C m"], teacher: Float[Array, "B C n"]) -> Float[Array, "B m n"]:
    """Inner products of the columns, without gradient."""
    product = jnp.einsum("bci,bcj->bij", student, teacher, precision=lax.Precision.HIGHEST)
    return lax.stop_gradient(product)


def align_by_cosine(student: Float[Array, "B C m"], teacher: Float[Array, "B C n"]) -> Float[Array, "B C n"]:
    """For each of the n teacher columns the student column of the largest |cos|, with the sign of its cos.

    Equally good columns are added, and a cos of 0 (a map of zeros) gives 0. Source: toolbox.
    """
    cos = cosines(student, teacher)
    size = jnp.abs(cos)
    selection = jnp.where(size == jnp.max(size, axis=1, keepdims=True), jnp.sign(cos), 0)
    return jnp.einsum("bci,bij->bcj", student, selection, precision=lax.Precision.HIGHEST)


def align_weighted(
    student: Float[Array, "B C m"],
    teacher: Float[Array, "B C k"],
    teacher_s: Float[Array, "B k"],
    n: int,
    sign_to: str = "teacher",
) -> tuple[Float[Array, "B C n"], Float[Array, "B C n"]]:
    """(student, teacher) of the first n teacher columns, weighted with the teacher's singular values at unit length.

    The student's column is the one of the largest |cos|. No gradient reaches the weights. Source: ECCV code.

    Args:
      sign_to: who is turned where the two point in opposite directions: "teacher", as in the official code, where the
        loss then depends on the arbitrary signs of the student's decomposition, or "student".
    """
    teacher = teacher[..., :n]
    chosen = jnp.argmax(jnp.abs(cosines(student, teacher)), axis=1)
    weight = lax.stop_gradient(l2_normalize(teacher_s[:, :n]))[:, None, :]
    student = jnp.take_along_axis(student, chosen[:, None, :], axis=2) * weight
    teacher = lax.stop_gradient(teacher) * weight
    sign = lax.stop_gradient(jnp.where(jnp.sum(student * teacher, axis=1, keepdims=True) >= 0, 1, -1))
    return (student, teacher * sign) if sign_to == "teacher" else (student * sign, teacher)
