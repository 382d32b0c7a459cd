"""Boxes (ymin, xmin, ymax, xmax): overlap, non-maximum suppression, changes of form."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Boxes = Float[Array, "n 4"]


def iou(a: Boxes, b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Intersection over union of each pair; 0 where both are empty."""
    low = jnp.maximum(a[:, None, :2], b[None, :, :2])
    high = jnp.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = jnp.prod(jnp.maximum(high - low, 0.0), axis=-1)
    union = area(a)[:, None] + area(b)[None] - intersection
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1.0), 0.0)


def area(boxes: Boxes) -> Float[Array, " n"]:
    """Area; 0 for a box that is inside out."""
    return jnp.prod(jnp.maximum(boxes[:, 2:] - boxes[:, :2], 0.0), axis=-1)


def to_centers(boxes: Boxes) -> Boxes:
    """(cy, cx, h, w) of corner boxes."""
    return jnp.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=-1)


def to_corners(boxes: Boxes) -> Boxes:
    """Corner boxes of (cy, cx, h, w)."""
    return jnp.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=-1)


def is_real(boxes: Boxes, labels: Int[Array, " n"]) -> Bool[Array, " n"]:
    """Neither padding (label -1) nor degenerate (no height or no width)."""
    return (labels >= 0) & jnp.all(boxes[:, 2:] > boxes[:, :2], axis=-1)


def suppress(boxes: Boxes, scores: Float[Array, " n"], threshold: float) -> tuple[Int[Array, " n"], Bool[Array, " n"]]:
    """Greedy non-maximum suppression.

    Args:
      boxes: of one class.
      scores: the highest goes first, of equals the first box.
      threshold: a box is kept if its overlap with every box kept before it is at most this.

    Returns:
      Order of the boxes by score, and whether each box in this order is kept.
    """
    order = jnp.argsort(-scores, stable=True)
    overlaps = iou(boxes[order], boxes[order]) > threshold

    def visit(place, kept):
        hidden = jnp.any(kept & overlaps[place] & (jnp.arange(len(order)) < place))
        return kept.at[place].set(~hidden)

    return order, jax.lax.fori_loop(0, len(order), visit, jnp.zeros(len(order), bool))
