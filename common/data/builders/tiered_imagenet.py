"""tiered-ImageNet (Ren et al. 2018): 608 classes of ImageNet, split by their super-classes into 351 / 97 / 160."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from common.data.builders.arrays import check_images, png, read_npz, read_pickle
from common.data.builders.base import PictureBuilder
from common.data.builders.layouts import Example, class_folders, file_per_split
from common.errors import UserError

_LABELS = ("label_specific", "labels")


def read_pngs(file: Path) -> Iterator[Example]:
    """Pictures of <split>_images_png.pkl, a list of encoded PNG files, with the labels beside it."""
    pictures = read_pickle(file)
    if not isinstance(pictures, list | tuple | np.ndarray):
        raise UserError(f"file {file} must hold a list of PNG files, but holds a {type(pictures).__name__}.")
    labels = _labels(file, file.name.removesuffix("_images_png.pkl"), len(pictures))
    for place, (label, picture) in enumerate(zip(labels, pictures, strict=True)):
        encoded = picture.encode("latin1") if isinstance(picture, str) else bytes(picture)
        yield Example(label, f"{place:08d}.png", encoded)


def read_arrays(file: Path) -> Iterator[Example]:
    """Pictures of <split>_images.npz, "images": uint8 [n, 84, 84, 3], with the labels beside it.

    These arrays were read with OpenCV, so their channels are blue, green, red; the PNG files of `read_pngs`, which
    OpenCV wrote, have them in the usual order.
    """
    images = check_images(file, read_npz(file, "images"))
    labels = _labels(file, file.name.removesuffix("_images.npz"), len(images))
    for place, (label, image) in enumerate(zip(labels, images, strict=True)):
        yield Example(label, f"{place:08d}.png", png(np.ascontiguousarray(image[..., ::-1])))


def _labels(images: Path, split: str, count: int) -> list[str]:
    """Class of every picture, from <split>_labels.pkl or .npz: by number, since some names stand for two classes."""
    pickled, arrays = (images.with_name(f"{split}_labels{suffix}") for suffix in (".pkl", ".npz"))
    if pickled.is_file() or not arrays.is_file():
        content = read_pickle(pickled)
        key = next((key for key in _LABELS if isinstance(content, dict) and key in content), None)
        if key is None:
            raise UserError(f"file {pickled} must hold a dict with {' or '.join(map(repr, _LABELS))}.")
        numbers = content[key]
    else:
        numbers = read_npz(arrays, *_LABELS)
    numbers = np.asarray(numbers).ravel()
    if len(numbers) != count or not np.issubdtype(numbers.dtype, np.integer):
        raise UserError(f"{images} holds {count} images, but its labels are {len(numbers)} of type {numbers.dtype}.")
    return [f"{split} class {number:04d}" for number in numbers]


class TieredImagenet(PictureBuilder):
    """tiered-ImageNet from class folders, or from its published arrays."""

    name = "tiered_imagenet"
    VERSION = tfds.core.Version("1.0.0")
    description = "608 classes of ImageNet, split by super-class into 351, 97 and 160 classes."
    homepage = "https://arxiv.org/abs/1803.00676"
    layouts = (
        class_folders(),
        file_per_split(
            "{train,val,test}_images_png.pkl beside {train,val,test}_labels.pkl", "{}_images_png", (".pkl",), read_pngs
        ),
        file_per_split(
            "{train,val,test}_images.npz beside {train,val,test}_labels.pkl or .npz",
            "{}_images",
            (".npz",),
            read_arrays,
        ),
    )
