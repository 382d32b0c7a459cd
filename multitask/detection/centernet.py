"""CenterNet: an object is the peak of a heat map at its centre [Zhou et al. 2019; Law and Deng 2018].

Maps are [S, S, channels], S = image size / output stride; boxes are (ymin, xmin, ymax, xmax) in 0..1. No anchors and
no suppression of overlapping boxes, so all shapes are static.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from multitask.detection.boxes import is_real

RADII = ("corrected", "legacy")
MINIMUM_OVERLAP = 0.7
HEAT_BIAS = -2.19  # a fresh network gives every cell and class a probability of 0.1


class Maps(NamedTuple):
    """What the head gives for a batch: class logits, sizes (h, w) and offsets (dy, dx) in output pixels."""

    logits: Float[Array, "B S S C"]
    sizes: Float[Array, "B S S 2"]
    offsets: Float[Array, "B S S 2"]


class Targets(NamedTuple):
    """For one image or, with a batch in front, many; G objects with padding.

    Attributes:
      heat: 1 at the cell of each object's centre, falling off around it.
      index: cell (row, column) of each object.
      sizes: (h, w) of each object in output pixels.
      offsets: (dy, dx) from the cell to the centre, in 0..1.
      real: False for padding and degenerate boxes.
    """

    heat: Float[Array, "*B S S C"]
    index: Int[Array, "*B G 2"]
    sizes: Float[Array, "*B G 2"]
    offsets: Float[Array, "*B G 2"]
    real: Bool[Array, "*B G"]


class Losses(NamedTuple):
    """Three parts and their weighted sum."""

    heat: Float[Array, ""]
    size: Float[Array, ""]
    offset: Float[Array, ""]
    total: Float[Array, ""]


class Detections(NamedTuple):
    """The k best of each image, best first; label -1 where nothing was found."""

    boxes: Float[Array, "B k 4"]
    scores: Float[Array, "B k"]
    labels: Int[Array, "B k"]


def gaussian_radius(
    h: Float[Array, "*n"], w: Float[Array, "*n"], rule: str = "corrected", overlap: float = MINIMUM_OVERLAP
) -> Float[Array, "*n"]:
    """How far a box of h x w may be moved or resized so that it still overlaps the true one by at least `overlap`.

    The smallest root of three cases. "legacy" is the formula of the released CornerNet and CenterNet code, which
    divides by 2 in all three cases and takes the larger roots: a known error that gives larger radii.
    """
    total, product = h + w, h * w
    b1, c1 = total, product * (1 - overlap) / (1 + overlap)
    b2, c2 = 2 * total, (1 - overlap) * product
    b3, c3 = -2 * overlap * total, (overlap - 1) * product
    root1 = jnp.sqrt(b1**2 - 4 * c1)
    root2 = jnp.sqrt(b2**2 - 16 * c2)
    root3 = jnp.sqrt(b3**2 - 16 * overlap * c3)
    if rule == "legacy":
        cases = (b1 + root1) / 2, (b2 + root2) / 2, (b3 + root3) / 2
    else:
        cases = (b1 - root1) / 2, (b2 - root2) / 8, (b3 + root3) / (8 * overlap)
    return jnp.minimum(jnp.minimum(cases[0], cases[1]), cases[2])


def radii(boxes: Float[Array, "G 4"], size: int, rule: str = "corrected") -> Int[Array, " G"]:
    """Whole cells, at least 0, of the Gaussians of boxes on a map of `size` cells a side."""
    extent = jnp.ceil(jnp.maximum((boxes[:, 2:] - boxes[:, :2]) * size, 0.0))
    return jnp.maximum(jnp.floor(gaussian_radius(extent[:, 0], extent[:, 1], rule)), 0.0).astype(jnp.int32)


def make_targets(
    boxes: Float[Array, "G 4"], labels: Int[Array, " G"], size: int, num_classes: int, rule: str = "corrected"
) -> Targets:
    """Targets of one image whose map has `size` x `size` cells.

    Each object draws exp(-d^2 / 2 sigma^2), sigma = (2 r + 1) / 6, within r cells of its own on the map of its class;
    where objects of a class overlap, the larger value stays.
    """
    real = is_real(boxes, labels)
    scaled = boxes * size
    center = (scaled[:, :2] + scaled[:, 2:]) / 2
    index = jnp.clip(jnp.floor(center), 0, size - 1).astype(jnp.int32)
    radius = radii(boxes, size, rule)
    away = jnp.arange(size)[None, :, None] - index[:, None, :]  # [G, S, 2]: rows, columns
    inside = jnp.abs(away) <= radius[:, None, None]
    sigma = (2 * radius + 1) / 6.0
    squares = away[:, :, 0, None] ** 2 + away[:, None, :, 1] ** 2
    gaussians = jnp.exp(-squares / (2 * sigma**2)[:, None, None])
    window = inside[:, :, 0, None] & inside[:, None, :, 1] & real[:, None, None]
    own = jax.nn.one_hot(labels, num_classes)[:, None, None, :]
    heat = jnp.max(jnp.where(window, gaussians, 0.0)[..., None] * own, axis=0, initial=0.0)
    return Targets(heat, index, scaled[:, 2:] - scaled[:, :2], center - index, real)


def losses(maps: Maps, targets: Targets, size_weight: float = 0.1, offset_weight: float = 1.0) -> Losses:
    """Penalty-reduced focal loss (exponents 2 and 4) of the heat map; L1 of size and offset at the objects' cells.

    Each part is divided by its number of centres or objects in the batch, at least 1. Two objects of one cell both
    count.
    """
    log_p, log_not_p = jax.nn.log_sigmoid(maps.logits), jax.nn.log_sigmoid(-maps.logits)
    p = jax.nn.sigmoid(maps.logits)
    peak = targets.heat == 1
    positive = (1 - p) ** 2 * log_p
    negative = (1 - targets.heat) ** 4 * p**2 * log_not_p
    heat = -jnp.sum(jnp.where(peak, positive, negative)) / jnp.maximum(jnp.sum(peak), 1)

    def at_cells(grid: Array) -> Array:
        return jax.vmap(lambda values, index: values[index[:, 0], index[:, 1]])(grid, targets.index)

    def absolute(grid: Array, wanted: Array) -> Array:
        error = jnp.sum(jnp.abs(at_cells(grid) - wanted), axis=-1)
        return jnp.sum(jnp.where(targets.real, error, 0.0)) / jnp.maximum(jnp.sum(targets.real), 1)

    size, offset = absolute(maps.sizes, targets.sizes), absolute(maps.offsets, targets.offsets)
    return Losses(heat, size, offset, heat + size_weight * size + offset_weight * offset)


def decode(maps: Maps, count: int) -> Detections:
    """The `count` highest peaks of the heat maps as boxes, not clipped to the image.

    A peak is a cell that equals the maximum of the 3 x 3 cells around it, in its class. Of equal scores the first cell
    in (row, column, class) order is taken. Other cells have score 0.
    """
    batch, side, _, classes = maps.logits.shape
    p = jax.nn.sigmoid(maps.logits)
    around = jax.lax.reduce_window(p, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    peaks = jnp.where(p == around, p, 0.0)
    scores, places = jax.lax.top_k(peaks.reshape(batch, -1), count)
    labels, cells = places % classes, places // classes

    def at(grid: Array) -> Array:
        return jnp.take_along_axis(grid.reshape(batch, side * side, 2), cells[..., None], axis=1)

    center = jnp.stack([cells // side, cells % side], axis=-1) + at(maps.offsets)
    half = at(maps.sizes) / 2
    return Detections(jnp.concatenate([center - half, center + half], axis=-1) / side, scores, labels)
