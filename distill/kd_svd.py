"""KD-SVD's loss (Lee, Kim and Song, ECCV 2018): relations of the singular vectors of consecutive sensing points.

A point of the network is compressed to its leading right singular vectors ("distillation feature vectors"); the
knowledge is how each entry of the vector before a block relates to each entry of the vector behind it.
"""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from distill import svd
from distill.align import align_by_cosine, align_weighted

BETA = 8.0
CANDIDATES = 3  # of the student beside the n of the teacher, in the toolbox; 1 in the ECCV code


def rbf_relation(
    front: Float[Array, "B F n"], back: Float[Array, "B K n"], beta: float = BETA
) -> Float[Array, "B F K n"]:
    """exp(-(f_F[i] - f_B[j])² / β) of all pairs of entries, in (0, 1]."""
    return jnp.exp(-jnp.square(front[:, :, None] - back[:, None, :]) / beta)


def relation_difference(
    student: tuple[Array, Array], teacher: tuple[Array, Array], beta: float = BETA
) -> Float[Array, ""]:
    """Σ (relation of the student - relation of the teacher)² over everything, the batch too; each is (front, back).

    Non-finite terms are left out. No gradient reaches the teacher. The forward pass keeps no [B, F, K, n] array.
    """

    @jax.checkpoint
    def difference(student, teacher):
        of_student, of_teacher = (rbf_relation(front, back, beta) for front, back in (student, teacher))
        square = jnp.square(of_student - of_teacher)
        return jnp.sum(jnp.where(jnp.isfinite(square), square, 0))

    return difference(student, lax.stop_gradient(teacher))


def kd_svd_loss(student: Sequence[Float[Array, "B _ n"]], teacher: Sequence[Float[Array, "B _ n"]]) -> Float[Array, ""]:
    """Σ over consecutive points of `relation_difference` of aligned vectors, one array a point. Source: toolbox."""
    total = jnp.zeros((), student[0].dtype)
    for ours, theirs in zip(pairwise(student), pairwise(teacher), strict=True):
        total += relation_difference(ours, theirs)
    return total


def eccv_loss(
    student: Sequence[Float[Array, "B _ _"]],
    teacher: Sequence[Float[Array, "B _ _"]],
    teacher_s: Sequence[Float[Array, "B _"]],
    n: int,
    sign_to: str = "teacher",
) -> Float[Array, ""]:
    """Σ over consecutive points of √n / 2 times `relation_difference` of weighted, aligned vectors. Source: ECCV code.

    Args:
      student, teacher: right singular vectors of each point, n + 1 of them (or as many as there are).
      teacher_s: the teacher's singular values of the same.
      n: distilled vectors; from a point with fewer on, only as many as that has.
      sign_to: see `align_weighted`.
    """
    total = jnp.zeros((), student[0].dtype)
    points = list(zip(student, teacher, teacher_s, strict=True))
    for front, back in pairwise(points):
        n = min(n, front[1].shape[2], back[1].shape[2])
        ours, theirs = zip(*(_finite(*align_weighted(*point, n, sign_to)) for point in (front, back)), strict=True)
        total += jnp.sqrt(n) / 2 * relation_difference(ours, theirs)
    return total


def _finite(student: Float[Array, "B C n"], teacher: Float[Array, "B C n"]) -> tuple[Array, Array]:
    """Both with 0 where either is not finite; gradients of samples that are finite count B / (number of them + 0.001).

    Values are unchanged by that factor. Source: ECCV code.
    """
    usable = jnp.isfinite(student) & jnp.isfinite(teacher)
    sample = jnp.all(usable, axis=(1, 2), keepdims=True)
    student, teacher = jnp.where(usable, student, 0), jnp.where(usable, teacher, 0)
    return _scale_gradient(student, _sample_weights(sample, student.dtype)), teacher


def _sample_weights(finite: Bool[Array, "B 1 1"], dtype: jnp.dtype) -> Float[Array, "B 1 1"]:
    finite = finite.astype(dtype)
    return finite * finite.shape[0] / (jnp.sum(finite) + 1e-3)


@jax.custom_vjp
def _scale_gradient(x: Array, weight: Array) -> Array:
    """x, whose cotangent is multiplied by `weight`."""
    del weight
    return x


_scale_gradient.defvjp(
    lambda x, weight: (x, weight), lambda weight, cotangent: (cotangent * weight, jnp.zeros_like(weight))
)


def student_vectors(
    tap: Array, count: int, gradient: str = "toolbox", backend: str = "auto", published_near_square: bool = False
) -> Float[Array, "B C _"]:
    """The first right singular vectors of a tap `[B, H, W, C]` or `[B, C]`, see `svd.svd_right_vectors`.

    Args:
      published_near_square: as the toolbox does under its `eid`, no gradient where 2/3 < HW/C < 3/2.
    """
    x = svd.feature_matrix(tap)
    if published_near_square and 2 * x.shape[2] < 3 * x.shape[1] < 4.5 * x.shape[2]:
        x = lax.stop_gradient(x)
    return svd.svd_right_vectors(x, count, gradient, backend)


def teacher_vectors(
    tap: Array, count: int, backend: str = "auto", canonical: bool = True
) -> tuple[Float[Array, "B C _"], Float[Array, "B _"]]:
    """(right singular vectors, singular values) of a tap, the first `count` of them, without gradient.

    Args:
      canonical: with the signs of `svd.canonical_sign`.
    """
    found = svd.decompose(svd.feature_matrix(tap), backend)
    vectors = found.v[..., :count]
    return vectors * svd.canonical_sign(vectors) if canonical else vectors, found.s[:, :count]


def aligned_with(
    target: Float[Array, "B C 1"],
    tap: Array,
    gradient: str = "toolbox",
    backend: str = "auto",
    published_near_square: bool = False,
) -> Float[Array, "B C 1"]:
    """The student's vector of a tap that stands for the teacher's leading one, in the toolbox's way."""
    return align_by_cosine(student_vectors(tap, 1 + CANDIDATES, gradient, backend, published_near_square), target)
