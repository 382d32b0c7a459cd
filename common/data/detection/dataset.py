"""What every source of detection data hands over, and the list of sources."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.data.request import Request
from common.errors import UserError, did_you_mean

# name -> module of common.data.detection
_SOURCES = {"shapes": "shapes", "voc2007": "voc", "voc2007_2012": "voc"}
_SLACK = 1e-6  # boxes in float32 may end this far outside of an image


@dataclass(frozen=True, eq=False)
class DetectionSplit:
    """Images with their objects, padded to equally many.

    Attributes:
      images: uint8 [n, S, S, 3].
      boxes: float32 [n, G, 4], (ymin, xmin, ymax, xmax) in 0..1.
      labels: int32 [n, G], -1 for padding.
      difficult: bool [n, G]; such objects are neither learned nor counted.
      sizes: int32 [n, 2], height and width of the pictures before they were resized, in pixels.
    """

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    sizes: np.ndarray

    def check(self, where: str, num_classes: int) -> None:
        """Raise UserError for what cannot be; `where`: data set and split, for the message."""
        images, boxes, labels = self.images, self.boxes, self.labels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
            raise UserError(f"images of {where} must be uint8 [n, S, S, 3], but are {images.dtype} {images.shape}.")
        fits = labels.shape == boxes.shape[:-1] == self.difficult.shape and len(labels) == len(images)
        if not fits or boxes.shape[-1] != 4:
            raise UserError(
                f"boxes [n, G, 4], labels [n, G] and difficult [n, G] of {where} must fit its {len(images)} images, "
                f"but are {boxes.shape}, {labels.shape} and {self.difficult.shape}."
            )
        if labels.min(initial=-1) < -1 or labels.max(initial=-1) >= num_classes:
            raise UserError(
                f"labels of {where} must lie in 0..{num_classes - 1} (-1: padding), but reach from {labels.min()} "
                f"to {labels.max()}."
            )
        real = labels >= 0
        inside = np.all((boxes >= -_SLACK) & (boxes <= 1 + _SLACK), axis=-1)  # False for NaN
        solid = np.all(boxes[..., 2:] > boxes[..., :2], axis=-1)
        for wrong, problem in ((real & ~inside, "reaches out of the image"), (real & ~solid, "has no area")):
            if wrong.any():
                image, place = np.argwhere(wrong)[0]
                raise UserError(
                    f"object {place} of image {image} of {where} {problem}: its box is "
                    f"{[round(float(edge), 4) for edge in boxes[image, place]]}, (ymin, xmin, ymax, xmax) in 0..1."
                )


@dataclass(frozen=True, eq=False)
class DetectionData:
    """A data set in memory, checked.

    Attributes:
      name: of the source.
      train, test: images of one size.
      class_names: in label order.
      licence, source: of the images.

    Raises:
      UserError: arrays that do not fit, no image, a box outside of its image or without an area, a label outside of the
        classes, or a split without an object to learn or to find.
    """

    name: str
    train: DetectionSplit
    test: DetectionSplit
    class_names: tuple[str, ...]
    licence: str = field(repr=False)
    source: str

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            part: DetectionSplit = getattr(self, split)
            part.check(f"{self.name} ({split})", len(self.class_names))
            if not np.any((part.labels >= 0) & ~part.difficult):
                raise UserError(f"{self.name} ({split}) holds no object that is not difficult: there is nothing to do.")

    def summary(self) -> str:
        """What was found, in one line."""
        parts = (
            f"{split}: {len(part.images)} images, {int((part.labels >= 0).sum())} objects"
            for split, part in (("train", self.train), ("test", self.test))
        )
        return (
            f"{self.name} ({self.source}; licence: {self.licence}): {len(self.class_names)} classes; {'; '.join(parts)}"
        )


def names() -> tuple[str, ...]:
    """Names that `load` knows."""
    return tuple(_SOURCES)


def load(
    name: str, *, image_size: int, path: str = "", seed: int = 0, options: Mapping[str, object] | None = None
) -> DetectionData:
    """Data set `name` in memory.

    Args:
      name: one of `names()`.
      image_size: side of the square images in pixels; others are resized (boxes are relative, so they stay).
      path: folder of the data, for sources that are read from one.
      seed: of drawn images.
      options: further settings; each source documents its own.

    Raises:
      UserError: unknown name or option; missing, damaged or impossible data.
    """
    if name not in _SOURCES:
        raise UserError(
            f"unknown detection data set {name!r}{did_you_mean(name, names())}; known are: {', '.join(names())}."
        )
    if image_size < 8:
        raise UserError(f"image_size must be at least 8 pixels, but is {image_size}.")
    source: Any = importlib.import_module(f"common.data.detection.{_SOURCES[name]}")
    return source.load(Request(name, "detection", image_size, 3, path or None, seed, options or {}))
