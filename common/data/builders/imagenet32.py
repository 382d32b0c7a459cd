"""ImageNet at 32 x 32 pixels (Chrabaszcz, Loshchilov and Hutter 2017): 1000 classes, 1 281 167 pictures to train.

Published as arrays, {"data": uint8 [n, 3072], "labels": 1 to 1000}, whose rows hold the red pixels of a picture, then
the green, then the blue ones. The training pictures come in ten files; what is published as "val" is our test split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from common.data.builders.arrays import png, read_npz, read_pickle
from common.data.builders.base import PictureBuilder
from common.data.builders.layouts import Example, Layout, Splits
from common.errors import UserError

SIDE = 32


def _read_pickles(root: Path) -> Splits | None:
    """Files without a suffix."""
    return _read(root, "")


def _read_arrays(root: Path) -> Splits | None:
    return _read(root, ".npz")


def _read(root: Path, suffix: str) -> Splits | None:
    train = _numbered(root, suffix)
    test = _beside(root, f"val_data{suffix}")
    return {"train": _examples(train), "test": _examples(test)} if train and test else None


def _numbered(root: Path, suffix: str) -> list[Path]:
    """train_data_batch_1, _2, ... in order of their numbers; raises UserError if one of 1 to the last is missing."""
    numbers = {
        int(found.group(1)): file
        for pattern in ("train_data_batch_*", "*/train_data_batch_*")
        for file in root.glob(pattern)
        if (found := re.fullmatch(rf"train_data_batch_(\d+){re.escape(suffix)}", file.name))
    }
    absent = set(range(1, max(numbers, default=0) + 1)) - set(numbers)
    if absent:
        raise UserError(f"file train_data_batch_{min(absent)}{suffix} is missing in {root}: copy it there.")
    return [numbers[number] for number in sorted(numbers)]


def _beside(root: Path, name: str) -> list[Path]:
    return sorted([*root.glob(name), *root.glob(f"*/{name}")])[:1]


def _examples(files: Sequence[Path]) -> Iterator[Example]:
    """Pictures of the files, one file in memory at a time; the class is the published number."""
    for file in files:
        images, labels = _content(file)
        for place, (image, label) in enumerate(zip(images, labels, strict=True)):
            picture = np.ascontiguousarray(image.reshape(3, SIDE, SIDE).transpose(1, 2, 0))
            yield Example(f"{int(label):04d}", f"{file.stem}-{place:07d}.png", png(picture))


def _content(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows and labels of a file. Raises UserError unless they are what is published."""
    if file.suffix == ".npz":
        images: Any = read_npz(file, "data")
        labels: Any = read_npz(file, "labels")
    else:
        content = read_pickle(file)
        if not isinstance(content, dict) or not {"data", "labels"} <= content.keys():
            raise UserError(f"file {file} must hold a dict with 'data' and 'labels'.")
        images, labels = content["data"], np.asarray(content["labels"])
    shape = np.shape(images)
    if getattr(images, "dtype", None) != np.uint8 or shape[1:] != (3 * SIDE * SIDE,):
        raise UserError(f"'data' in {file} must be uint8 [n, {3 * SIDE * SIDE}], but is of shape {list(shape)}.")
    if labels.shape != shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{file} holds {shape[0]} pictures, but its labels are {list(labels.shape)} of {labels.dtype}.")
    return images, labels


class Imagenet32(PictureBuilder):
    """ImageNet 32 x 32 from the published arrays, all in one folder or each archive in its own below it."""

    name = "imagenet32"
    VERSION = tfds.core.Version("1.0.0")
    description = "The 1000 classes of ImageNet at 32 x 32 pixels: 1 281 167 pictures to train, 50 000 to test."
    homepage = "https://arxiv.org/abs/1707.08819"
    disjoint_classes = False
    layouts = (
        Layout("train_data_batch_<number> and val_data, the published pickles", _read_pickles),
        Layout("train_data_batch_<number>.npz and val_data.npz, the published arrays", _read_arrays),
    )
