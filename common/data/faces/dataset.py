"""What every source of labelled faces hands over, and the list of sources."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Int32

from common.data.folder import read_pictures
from common.data.request import Request
from common.errors import UserError, did_you_mean

# name -> module of common.data.faces
_SOURCES = {
    "faces": "synthetic",
    "csv": "table",
    "afew_va": "published",
    "affectnet": "published",
    "aff_wild2": "published",
}
SPLITS = ("train", "seen", "validation", "test")
CATEGORIES = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")  # AffectNet's order


@dataclass(frozen=True, eq=False)
class PictureFiles:
    """Pictures of files, read whenever they are asked for, for sets that do not fit into memory.

    Stands in for an array [n, S, S, 3] that is only looked up by rows.
    """

    files: tuple[Path, ...]
    image_size: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.files), self.image_size, self.image_size, 3

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, places: Any) -> np.ndarray:
        """uint8 [m, S, S, 3], or [S, S, 3] for one place. Raises UserError for a picture that cannot be read."""
        rows = np.atleast_1d(places)
        images = read_pictures([self.files[int(row)] for row in rows], self.image_size, 3)
        return images if np.ndim(places) else images[0]

    def select(self, places: np.ndarray) -> PictureFiles:
        """The files of these places."""
        return PictureFiles(tuple(self.files[int(place)] for place in places), self.image_size)


@dataclass(frozen=True, eq=False)
class Faces:
    """Frames of one split.

    Attributes:
      images: uint8 [n, H, W, 3], or the files to read them from.
      valence_arousal: float32 [n, 2] in [-1, 1].
      identity: int32 [n], place among `identity_names`, which are sorted as text.
      category: int32 [n], place among CATEGORIES; -1 where it is not known.
      age: float32 [n] in years; nan where it is not known.
      files: name of each frame.
    """

    images: np.ndarray | PictureFiles
    valence_arousal: Float32[np.ndarray, "n 2"]
    identity: Int32[np.ndarray, " n"]
    identity_names: tuple[str, ...]
    category: Int32[np.ndarray, " n"]
    age: Float32[np.ndarray, " n"]
    files: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.identity)

    def take(self, places: Int[np.ndarray, " m"]) -> Faces:
        """The frames of these places; identities keep their numbers."""
        return Faces(
            self.images.select(places) if isinstance(self.images, PictureFiles) else self.images[places],
            self.valence_arousal[places],
            self.identity[places],
            self.identity_names,
            self.category[places],
            self.age[places],
            tuple(self.files[int(place)] for place in places),
        )


@dataclass(frozen=True, eq=False)
class FaceData:
    """Splits by person: "train", "validation" and "test" show different people, "seen" other frames of the train ones.

    Raises UserError if two of the splits share a person.
    """

    name: str
    splits: dict[str, Faces]
    licence: str = field(repr=False)
    source: str
    synthetic: bool = False

    def __post_init__(self) -> None:
        people = {name: set(split.identity_names) for name, split in self.splits.items() if name != "seen"}
        for first in people:
            for second in people:
                if first < second and people[first] & people[second]:
                    raise UserError(
                        f"identity {min(people[first] & people[second])!r} of data set {self.name!r} is in both "
                        f"{first!r} and {second!r}: whoever is tested must not be trained on."
                    )

    def summary(self) -> str:
        """One line: name, and what each split holds."""
        counts = (f"{name} {len(s.identity_names)} identities, {len(s)} frames" for name, s in self.splits.items())
        return f"{self.name}{' (synthetic)' if self.synthetic else ''}: {'; '.join(counts)}"


def names() -> tuple[str, ...]:
    """Names that `load` knows."""
    return tuple(_SOURCES)


def load(
    name: str,
    *,
    image_size: int,
    path: str = "",
    seed: int = 0,
    options: Mapping[str, object] | None = None,
) -> FaceData:
    """The frames of all splits in memory.

    Args:
      name: one of `names()`.
      image_size: side of the square pictures; others are resized (bicubic).
      path: of the data, for sources that are read.
      seed: of rendering, or of a split.
      options: further settings; each source documents its own.

    Raises:
      UserError: unknown name or option; missing, damaged or unfitting files or labels.
    """
    if name not in _SOURCES:
        raise UserError(
            f"unknown face data set {name!r}{did_you_mean(name, names())}; known are: {', '.join(names())}."
        )
    if image_size < 16:
        raise UserError(f"image_size must be at least 16 pixels, but is {image_size}.")
    source: Any = importlib.import_module(f"common.data.faces.{_SOURCES[name]}")
    return source.load(Request(name, "faces", image_size, 3, path or None, seed, options or {}))


def number(names_of_rows: Sequence[str]) -> tuple[Int32[np.ndarray, " n"], tuple[str, ...]]:
    """Identity names as numbers: places among the sorted distinct ones."""
    distinct, codes = np.unique(np.asarray(names_of_rows, dtype=str), return_inverse=True)
    return codes.astype(np.int32), tuple(map(str, distinct))
