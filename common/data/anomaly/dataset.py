"""What every source of anomaly data hands over, and the list of sources."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from common.data.anomaly.frame import Frame
from common.data.request import Request
from common.errors import UserError, did_you_mean

# name -> module of common.data.anomaly
_SOURCES = {"textures": "textures", "mvtec_ad": "mvtec", "folder": "folder"}


@dataclass(frozen=True, eq=False)
class AnomalyData:
    """Images in memory, RGB, all of the frame's crop.

    Attributes:
      train: good images only; of another size than `test` where a method has cropped that once more.
      test: good and defective images; may be empty.
      labels: 0 = good, 1 = defective.
      masks: True where a test image is defective; None where only images are labelled.
      defects: name of each test image's defect, "good" for none.
      files: name of each test image, unique.
      licence, source: of the images.
    """

    name: str
    train: UInt8[np.ndarray, "n _ _ 3"]
    test: UInt8[np.ndarray, "m H W 3"]
    labels: Int32[np.ndarray, " m"]
    masks: Bool[np.ndarray, "m H W"] | None
    defects: tuple[str, ...]
    files: tuple[str, ...]
    licence: str = field(repr=False)
    source: str

    def summary(self) -> str:
        """What was found, in one line."""
        kinds = {name: self.defects.count(name) for name in dict.fromkeys(self.defects)}
        tests = ", ".join(f"{count} {name}" for name, count in kinds.items()) or "none"
        pixels = "with pixel masks" if self.masks is not None else "without pixel masks"
        return f"{self.name}: {len(self.train)} good images to train on; test images: {tests}; {pixels}."


def names() -> tuple[str, ...]:
    """Names that `load` knows."""
    return tuple(_SOURCES)


def load(
    name: str,
    category: str,
    frame: Frame,
    *,
    path: str = "",
    seed: int = 0,
    options: Mapping[str, object] | None = None,
) -> AnomalyData:
    """The images of one category.

    Args:
      name: one of `names()`.
      category: which texture or product; sources of a single one take "".
      path: folder of the data, for sources that are read from one.
      seed: of made-up defects or of a random split.
      options: further settings; each source documents its own.

    Raises:
      UserError: unknown name, category or option; missing, damaged or unfitting files.
    """
    return _source(name).load(category, frame, Request(name, "anomaly", 0, 3, path or None, seed, options or {}))


def count_training_images(
    name: str, category: str, *, path: str = "", seed: int = 0, options: Mapping[str, object] | None = None
) -> int:
    """How many images `load` will give to train on, without reading them. Raises UserError as `load` does."""
    request = Request(name, "anomaly", 0, 3, path or None, seed, options or {})
    return _source(name).count_training_images(category, request)


def _source(name: str) -> Any:
    if name not in _SOURCES:
        raise UserError(
            f"unknown anomaly data set {name!r}{did_you_mean(name, names())}; known are: {', '.join(names())}."
        )
    return importlib.import_module(f"common.data.anomaly.{_SOURCES[name]}")


def check_category(category: str, known: tuple[str, ...], name: str) -> None:
    """Raise UserError unless the category is known."""
    if category not in known:
        near = did_you_mean(category, known)
        raise UserError(f"data set {name!r} has no category {category!r}{near}; its categories: {', '.join(known)}.")
