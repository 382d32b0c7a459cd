"""CUB-200-2011 (Wah et al. 2011): 200 species of birds, split for few-shot learning by the number of the class."""

from __future__ import annotations

import re
from pathlib import Path

import tensorflow_datasets as tfds

from common.data.builders.base import PictureBuilder
from common.data.builders.layouts import Layout, Splits, class_folders, pictures_of


def split_of(number: int) -> str:
    """Split of class `number` (1 to 200): odd numbers train, 2 mod 4 validate, multiples of 4 test."""
    return "train" if number % 2 else ("validation" if number % 4 == 2 else "test")


def _read(root: Path) -> Splits | None:
    folder = root / "images"
    numbered = sorted(entry for entry in folder.glob("*") if re.fullmatch(r"\d{3}\..+", entry.name) and entry.is_dir())
    if not numbered:
        return None
    splits = {"train": [], "validation": [], "test": []}
    for species in numbered:
        splits[split_of(int(species.name[:3]))] += pictures_of(species)
    return splits


class Cub2002011(PictureBuilder):
    """CUB-200-2011 as published, split by class number, or as class folders that are split already."""

    name = "cub_200_2011"
    VERSION = tfds.core.Version("1.0.0")
    description = "200 species of birds: 100 (odd numbers) to train, 50 (2 mod 4) to validate, 50 to test."
    homepage = "https://www.vision.caltech.edu/datasets/cub_200_2011/"
    layouts = (
        Layout("images/<number>.<species>/<image>, as in CUB_200_2011.tgz", _read),
        class_folders(),
    )
