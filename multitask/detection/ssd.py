"""SSD: anchors on several maps, each classified and moved onto an object [Liu et al. 2016].

Class 0 of the logits is the background; boxes are (ymin, xmin, ymax, xmax) in 0..1, anchors (cy, cx, h, w).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int

from multitask.detection.boxes import iou, is_real, suppress, to_centers, to_corners

CENTER_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
MATCH_OVERLAP = 0.5
NEGATIVES_PER_POSITIVE = 3


class Match(NamedTuple):
    """Object of each anchor, -1 for the background; and the offsets that move the anchor onto it (0 without)."""

    objects: Int[Array, " A"]
    classes: Int[Array, " A"]
    offsets: Float[Array, "A 4"]


class Losses(NamedTuple):
    """Classification and localisation, divided by the number of positives of the batch."""

    classification: Float[Array, ""]
    localization: Float[Array, ""]
    positives: Int[Array, ""]
    selected: Bool[Array, "B A"]  # anchors whose class counts: positives and mined negatives


def make_anchors(levels: Sequence[int], scales: Sequence[float], ratios: Sequence[float]) -> Float64[np.ndarray, "A 4"]:
    """Anchors (cy, cx, h, w), ordered by level, row, column, shape.

    Args:
      levels: cells a side of each map.
      scales: side of the square anchor of each level relative to the image, and one more.
      ratios: width : height of further anchors; each is used upright and lying.
    """
    rows = []
    for level, cells in enumerate(levels):
        scale, between = scales[level], np.sqrt(scales[level] * scales[level + 1])
        shapes = [(scale, scale), (between, between)]
        for ratio in ratios:
            root = np.sqrt(ratio)
            shapes += [(scale / root, scale * root), (scale * root, scale / root)]
        middle = (np.arange(cells) + 0.5) / cells
        rows += [(y, x, h, w) for y in middle for x in middle for h, w in shapes]
    return np.array(rows)


def encode(boxes: Float[Array, "A 4"], anchors: Float[Array, "A 4"]) -> Float[Array, "A 4"]:
    """(ty, tx, th, tw) from anchors to corner boxes, divided by the variances. Boxes must not be degenerate."""
    wanted = to_centers(boxes)
    center = (wanted[:, :2] - anchors[:, :2]) / anchors[:, 2:] / CENTER_VARIANCE
    return jnp.concatenate([center, jnp.log(wanted[:, 2:] / anchors[:, 2:]) / SIZE_VARIANCE], axis=-1)


def decode(offsets: Float[Array, "A 4"], anchors: Float[Array, "A 4"]) -> Float[Array, "A 4"]:
    """Corner boxes of anchors moved by offsets, not clipped to the image."""
    center = anchors[:, :2] + offsets[:, :2] * CENTER_VARIANCE * anchors[:, 2:]
    size = anchors[:, 2:] * jnp.exp(offsets[:, 2:] * SIZE_VARIANCE)
    return to_corners(jnp.concatenate([center, size], axis=-1))


def match(anchors: Float[Array, "A 4"], boxes: Float[Array, "G 4"], labels: Int[Array, " G"]) -> Match:
    """Which object each anchor of an image stands for.

    An anchor takes the object that it overlaps most, if by at least one half. Then each object in turn claims the
    anchor that overlaps it most (the first of equals), whatever that had; later objects overwrite earlier ones.
    """
    real = is_real(boxes, labels)
    overlaps = jnp.where(real[None], iou(to_corners(anchors), boxes), -1.0)
    objects = jnp.where(jnp.max(overlaps, axis=1) >= MATCH_OVERLAP, jnp.argmax(overlaps, axis=1), -1)
    claimed = jnp.argmax(overlaps, axis=0)

    def claim(place, objects):
        return jnp.where(real[place], objects.at[claimed[place]].set(place), objects)

    objects = jax.lax.fori_loop(0, boxes.shape[0], claim, objects.astype(jnp.int32))
    found = objects >= 0
    # The anchors themselves stand in for missing objects before the logarithm: their offsets are 0.
    wanted = jnp.where(found[:, None], boxes[objects], to_corners(anchors))
    return Match(objects, jnp.where(found, labels[objects] + 1, 0), encode(wanted, anchors))


def losses(
    offsets: Float[Array, "B A 4"], logits: Float[Array, "B A C"], classes: Int[Array, "B A"],
    wanted: Float[Array, "B A 4"],
) -> Losses:  # fmt: skip
    """MultiBox loss: smooth L1 of the positives; cross entropy of them and, per image, of the three times as many
    negatives that look least like background (in stable order)."""
    log_p = jax.nn.log_softmax(logits)
    positive = classes > 0
    background = jnp.where(positive, -jnp.inf, -log_p[..., 0])
    rank = jnp.argsort(jnp.argsort(-jax.lax.stop_gradient(background), axis=-1, stable=True), axis=-1)
    allowed = jnp.minimum(NEGATIVES_PER_POSITIVE * jnp.sum(positive, -1), jnp.sum(~positive, -1))
    selected = positive | (rank < allowed[:, None]) & ~positive
    entropy = -jnp.take_along_axis(log_p, classes[..., None], axis=-1)[..., 0]
    error = jnp.abs(offsets - wanted)
    smooth = jnp.sum(jnp.where(error < 1, 0.5 * error**2, error - 0.5), axis=-1)
    number = jnp.sum(positive)
    divisor = jnp.maximum(number, 1)
    return Losses(
        jnp.sum(jnp.where(selected, entropy, 0.0)) / divisor,
        jnp.sum(jnp.where(positive, smooth, 0.0)) / divisor,
        number,
        selected,
    )


def detect(
    offsets: Float[Array, "A 4"],
    logits: Float[Array, "A C"],
    anchors: Float[Array, "A 4"],
    count: int,
    threshold: float = 0.45,
    candidates: int = 200,
) -> tuple[Float[Array, "k 4"], Float[Array, " k"], Int[Array, " k"]]:
    """Boxes, scores and labels of one image: of each class the best candidates, overlapping ones suppressed, then the
    `count` best of all classes. Label -1 and score 0 where there are not so many."""
    boxes = decode(offsets, anchors)
    p = jax.nn.softmax(logits)[:, 1:]
    candidates = min(candidates, boxes.shape[0])

    def of_class(scores: Array) -> tuple[Array, Array]:
        best, places = jax.lax.top_k(scores, candidates)
        order, kept = suppress(boxes[places], best, threshold)
        return boxes[places][order], jnp.where(kept, best[order], 0.0)

    found, scores = jax.vmap(of_class)(p.T)  # [C, candidates, ...]
    labels = jnp.broadcast_to(jnp.arange(p.shape[1])[:, None], scores.shape)
    best, places = jax.lax.top_k(scores.reshape(-1), min(count, scores.size))
    label = jnp.where(best > 0, labels.reshape(-1)[places], -1)
    return found.reshape(-1, 4)[places], best, label
