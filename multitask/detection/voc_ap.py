"""Average precision of detections by the rules of PASCAL VOC, on the host in float64.

Detections and objects are padded per image with label -1. Nothing is cut off by score first: a threshold such as 0.3
removes the end of the precision-recall curve and lowers the result.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Integer

RULES = ("all", "11point")
TRUE, FALSE, IGNORED, PADDING = 1, 0, -1, -2


class Detected(NamedTuple):
    """Boxes in the objects' coordinates; label -1 is padding."""

    boxes: Float[np.ndarray, "n k 4"]
    scores: Float[np.ndarray, "n k"]
    labels: Integer[np.ndarray, "n k"]


class Objects(NamedTuple):
    """What there is to find; `difficult` objects count for nothing, found or not."""

    boxes: Float[np.ndarray, "n g 4"]
    labels: Integer[np.ndarray, "n g"]
    difficult: Bool[np.ndarray, "n g"]


class AveragePrecision(NamedTuple):
    """Per class: AP (NaN where there is no object), number of objects to find; and what became of each detection."""

    ap: Float64[np.ndarray, " c"]
    objects: Int64[np.ndarray, " c"]
    flags: Int64[np.ndarray, "n k"]  # 1 true, 0 false, -1 ignored (a difficult object), -2 padding

    @property
    def mean(self) -> float:
        """Over the classes that have objects; NaN if none has."""
        known = self.ap[~np.isnan(self.ap)]
        return float(known.mean()) if len(known) else float("nan")


def overlaps(
    box: Float[np.ndarray, " 4"], others: Float[np.ndarray, "g 4"], offset: float | int = 0
) -> Float64[np.ndarray, " g"]:
    """Intersection over union of a box with each other; `offset` is added to every height and width."""
    box, others = box.astype(np.float64), others.astype(np.float64)

    def area(low: np.ndarray, high: np.ndarray) -> Any:
        return np.prod(np.maximum(high - low + offset, 0.0), axis=-1)

    shared = area(np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:]))
    union = area(box[:2], box[2:]) + area(others[:, :2], others[:, 2:]) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def judge(
    detected: Detected, objects: Objects, label: int, threshold: float, offset: float | int, strict: bool
) -> tuple[Int64[np.ndarray, " d"], tuple[np.ndarray, np.ndarray]]:
    """Flags of the detections of a class in order of falling score (ties: image, then place), and where they stand.

    A detection is compared with the object of its class and image that it overlaps most (the first of equals), found
    already or not. Overlap at least `threshold` (above it if `strict`): ignored if that object is difficult, false if
    it was found before, else true. Otherwise false.
    """
    images, places = np.nonzero(detected.labels == label)
    order = np.argsort(-detected.scores[images, places], kind="stable")
    images, places = images[order], places[order]
    found = np.zeros(objects.labels.shape, bool)
    flags = np.full(len(images), FALSE)
    for row, (image, place) in enumerate(zip(images, places, strict=True)):
        candidates = np.flatnonzero(objects.labels[image] == label)
        if not len(candidates):
            continue
        overlap = overlaps(detected.boxes[image, place], objects.boxes[image, candidates], offset)
        best = candidates[np.argmax(overlap)]
        if not (overlap.max() > threshold if strict else overlap.max() >= threshold):
            continue
        if objects.difficult[image, best]:
            flags[row] = IGNORED
        elif not found[image, best]:
            flags[row], found[image, best] = TRUE, True
    return flags, (images, places)


def average_precision(
    flags: Integer[np.ndarray, " d"], objects: int, rule: str = "all", legacy_thresholds: bool = False
) -> float:
    """AP of one class from the flags of its detections in order of falling score.

    Args:
      flags: 1 true, 0 false, -1 ignored.
      objects: to be found; 0 gives NaN.
      rule: "all" (VOC 2010 on): the area under the precision-recall curve made non-increasing. "11point" (VOC 2007):
        the mean over recalls 0, 0.1 .. 1 of the best precision at this recall or a higher one.
      legacy_thresholds: compare recall with floats 0, 0.1 .. as old code does, in which 3 * 0.1 > 0.3, so that
        precision at a recall of exactly 0.3, 0.6 or 0.7 is lost. By default whole numbers are compared.
    """
    if objects == 0:
        return float("nan")
    counted = flags[flags != IGNORED]
    true = np.cumsum(counted == TRUE)
    precision = true / np.arange(1, len(counted) + 1)
    if rule == "11point":
        if legacy_thresholds:
            reached = (true / objects)[None] >= np.arange(0.0, 1.1, 0.1)[:, None]
        else:
            reached = 10 * true[None] >= np.arange(11)[:, None] * objects
        return float(np.mean([np.max(precision[row], initial=0.0) for row in reached]))
    recall = np.concatenate([[0.0], true / objects, [1.0]])
    envelope = np.maximum.accumulate(np.concatenate([[0.0], precision, [0.0]])[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope[1:]))


def evaluate(
    detected: Detected,
    objects: Objects,
    num_classes: int,
    *,
    rule: str = "all",
    threshold: float = 0.5,
    box_offset: float | int = 0,
    strict: bool = False,
    legacy_thresholds: bool = False,
) -> AveragePrecision:
    """AP of every class.

    Args:
      detected, objects: in the same coordinates; pixels if `box_offset` is not 0.
      box_offset: 1 for the inclusive pixel indices of the VOC kit, 0 for continuous coordinates.
      strict: a match needs an overlap above `threshold` (a popular Python port) rather than at least that.
      rule, legacy_thresholds: see `average_precision`.
    """
    all_flags = np.full(detected.labels.shape, PADDING)
    ap, to_find = np.full(num_classes, np.nan), np.zeros(num_classes, np.int64)
    for label in range(num_classes):
        flags, where = judge(detected, objects, label, threshold, box_offset, strict)
        all_flags[where] = flags
        to_find[label] = np.sum((objects.labels == label) & ~objects.difficult)
        ap[label] = average_precision(flags, int(to_find[label]), rule, legacy_thresholds)
    return AveragePrecision(ap, to_find, all_flags)
