"""RKD (Park et al., "Relational Knowledge Distillation", 2019): distances and angles between the images of a batch."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from distill.method import Method
from distill.pairing import l2_normalize


def make(distance: float, angle: float) -> Method:
    """Huber losses of the distances and the angles, of pooled features of unit length.

    Args:
      distance, angle: weights; 25 and 50 in the toolbox.
    """

    def loss(modules, adapters, student, knowledge, labels):
        terms = {}
        for name, weight, relation in (("distance", distance, distances), ("angle", angle, angles)):
            s, t = (relation(l2_normalize(features)) for features in (student.features, knowledge))
            terms[name] = weight * huber(s - t).mean()
        return terms, adapters.state

    return Method(loss, knowledge=lambda teacher: teacher.features)


def distances(x: Float[Array, "B D"]) -> Float[Array, "B B"]:
    """Euclidean distances over their mean; an image is 1e-6 from itself, which counts in the mean (toolbox)."""
    squares = ((x[:, None] - x[None]) ** 2).sum(-1)
    found = jnp.sqrt(jnp.maximum(squares, 1e-12))
    return found / found.mean()


def angles(x: Float[Array, "B D"]) -> Float[Array, "B B B"]:
    """Cosines of the angles at image i between the directions to images j and k."""
    # Rounding may leave something between an image and itself, which must not be stretched to a direction.
    others = ~jnp.eye(len(x), dtype=bool)[..., None]
    directions = l2_normalize(jnp.where(others, x[None] - x[:, None], 0))
    return jnp.einsum("ijd,ikd->ijk", directions, directions)


def huber(difference: Float[Array, "..."]) -> Float[Array, "..."]:
    """½ x² up to 1, |x| - ½ beyond."""
    size = jnp.abs(difference)
    return jnp.where(size <= 1, 0.5 * jnp.square(difference), size - 0.5)
