"""Tiny-ImageNet: 200 classes of ImageNet at 64 x 64 pixels, 500 pictures each to train and 50 to test.

The published test pictures have no labels, so what is published as "val" is our test split. Its folder holds all
pictures together; their classes are in val_annotations.txt. Read as if the folder were a class (or sorted by an image
loader), nothing fits: accuracy then stays at chance.
"""

from __future__ import annotations

from pathlib import Path

import tensorflow_datasets as tfds

from common.data.builders.base import PictureBuilder
from common.data.builders.layouts import Example, Layout, Splits, pictures_of
from common.errors import UserError

ANNOTATIONS = "val_annotations.txt"


def _read_published(root: Path) -> Splits | None:
    """The published archive."""
    if not (root / "val" / ANNOTATIONS).is_file() or not (root / "train").is_dir():
        return None
    train = [example for label in sorted((root / "train").iterdir()) for example in _published_class(label)]
    test = _annotated(root / "val")
    _check_classes(root, train, test)
    return {"train": train, "test": test}


def _published_class(folder: Path) -> list[Example]:
    """train/<class>/images/<image>."""
    inner = folder / "images"
    return pictures_of(inner, folder.name) if inner.is_dir() else []


def _annotated(folder: Path) -> list[Example]:
    """Pictures of val/images with the class that each line of the annotations begins with: file, class, box."""
    examples, file = [], folder / ANNOTATIONS
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"file {file} cannot be read ({error}): copy it anew.") from error
    for number, line in enumerate(lines, 1):
        parts = line.split("\t")
        if len(parts) < 2 or not parts[0] or not parts[1]:
            raise UserError(f"line {number} of {file} must hold a file name and a class, but is {line!r}.")
        image = folder / "images" / parts[0]
        if not image.is_file():
            raise UserError(f"picture {image}, named in line {number} of {file}, is missing.")
        examples.append(Example(parts[1], parts[0], image))
    return sorted(examples)


def _read_sorted(root: Path) -> Splits | None:
    """Class folders: the published archive after somebody has sorted its validation pictures."""
    test = root / "val" if (root / "val").is_dir() else root / "test"
    folders = {"train": root / "train", "test": test}
    if not all(folder.is_dir() for folder in folders.values()) or (test / "images").is_dir():
        return None
    splits = {}
    for split, folder in folders.items():
        labels = sorted(entry for entry in folder.iterdir() if entry.is_dir())
        splits[split] = [example for label in labels for example in _published_class(label) or pictures_of(label)]
    if not splits["train"]:
        return None
    _check_classes(root, splits["train"], splits["test"])
    return splits


def _check_classes(root: Path, train: list[Example], test: list[Example]) -> None:
    """Raise UserError unless both splits have the same classes."""
    ours, theirs = ({example.class_name for example in split} for split in (train, test))
    if ours != theirs:
        odd = min(ours ^ theirs)
        raise UserError(f"class {odd!r} is in only one of the two splits of {root}: they must hold the same classes.")


class TinyImagenet(PictureBuilder):
    """Tiny-ImageNet from the published archive, or from class folders."""

    name = "tiny_imagenet"
    VERSION = tfds.core.Version("1.0.0")
    description = "200 classes of ImageNet at 64 x 64 pixels: 100 000 pictures to train, 10 000 to test."
    homepage = "https://www.kaggle.com/c/tiny-imagenet"
    disjoint_classes = False
    layouts = (
        Layout(
            f"the published archive: train/<class>/images/<image>, val/images/<image> and val/{ANNOTATIONS}",
            _read_published,
        ),
        Layout("{train,val}/<class>/<image>", _read_sorted),
    )
