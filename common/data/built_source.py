"""Data sets that our own builders have prepared (`python -m common.data.prepare`), read without TensorFlow."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from common.data import tfds_source
from common.data.cache import cached_arrays
from common.data.dataset import Dataset, Split, make_dataset
from common.data.images import fit_picture
from common.data.missing import missing_data
from common.data.request import Request
from common.errors import UserError

_VERSION = 1  # raise when pictures are decoded differently, so that cached arrays are not mistaken for the new ones


@dataclass(frozen=True)
class Entry:
    """What is known of a data set without its files."""

    builder: str  # "module:class" in common.data.builders
    licence: str
    source: str
    classes: dict[str, int]  # as published, by split; {}: splits that share their classes
    moments: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # mean and std, where published ones are used


ENTRIES = {
    "mini_imagenet": Entry(
        "mini_imagenet:MiniImagenet",
        "ImageNet's terms: non-commercial research and education",
        "ImageNet (Russakovsky et al. 2015), classes of Vinyals et al. 2016, split of Ravi and Larochelle 2017",
        {"train": 64, "validation": 16, "test": 20},
    ),
    "tiered_imagenet": Entry(
        "tiered_imagenet:TieredImagenet",
        "ImageNet's terms: non-commercial research and education",
        "ImageNet (Russakovsky et al. 2015), split of Ren et al. 2018",
        {"train": 351, "validation": 97, "test": 160},
    ),
    "cub_200_2011": Entry(
        "cub_200_2011:Cub2002011",
        "non-commercial research and education",
        "Caltech-UCSD Birds-200-2011 (Wah et al. 2011), few-shot split by class number",
        {"train": 100, "validation": 50, "test": 50},
    ),
    "cifar_fs": Entry(
        "cifar_fs:CifarFs",
        "not stated by its authors",
        "CIFAR-100 (Krizhevsky 2009), split of Bertinetto et al. 2019",
        {"train": 64, "validation": 16, "test": 20},
        ((0.5071, 0.4847, 0.4408), (0.2675, 0.2565, 0.2761)),
    ),
    "mvtec_ad": Entry(  # read by common.data.anomaly
        "mvtec_ad:MvtecAd",
        "CC BY-NC-SA 4.0",
        "MVTec AD (Bergmann et al. 2019)",
        {},
    ),
    "tiny_imagenet": Entry(
        "tiny_imagenet:TinyImagenet",
        "ImageNet's terms: non-commercial research and education",
        "ImageNet (Russakovsky et al. 2015), as Stanford's course CS231n cut it to 64 x 64; its val is our test",
        {"train": 200, "test": 200},
    ),
    "imagenet32": Entry(
        "imagenet32:Imagenet32",
        "ImageNet's terms: non-commercial research and education",
        "ImageNet (Russakovsky et al. 2015) at 32 x 32 by Chrabaszcz et al. 2017; its val is our test",
        {"train": 1000, "test": 1000},
    ),
}


def load(request: Request) -> Dataset:
    """A set prepared by our builder, from `path`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Splits hold the classes that the builder gave them, sorted by name, and the pictures of a class sorted by file name;
    few-shot splits have different classes, those for classification (tiny_imagenet, imagenet32) the
    same. Decoded pictures are kept in the cache directory, so that later starts need not decode them.

    Raises:
      UserError: not prepared, incomplete or damaged, splits that share a class, or any option.
    """
    request.read_options({})
    entry = ENTRIES[request.name]
    folder = tfds_source.find_prepared(request.name, request.path)
    if folder is None:
        raise missing_data(
            request.name,
            [tfds_source.data_dir(request.path) / request.name],
            tfds_source.how_to_prepare(request.name),
        )
    names = tuple(entry.classes)
    tfds_source.check_files(request.name, folder, names)
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.iterdir())]
    size = {"image_size": request.image_size, "channels": request.channels}
    key = {"name": request.name, "version": _VERSION, "folder": str(folder.resolve()), "files": files, **size}
    arrays = cached_arrays(key, lambda: _decode(folder, names, **size))
    splits = {
        split: Split(arrays[f"{split}_images"], arrays[f"{split}_labels"], tuple(map(str, arrays[f"{split}_names"])))
        for split in names
    }
    (check_disjoint if request.task == "fewshot" else check_same)(request.name, splits)
    dataset = make_dataset(request.name, splits, licence=entry.licence, source=entry.source)
    if entry.moments and len(entry.moments[0]) == request.channels:
        dataset = dataset.with_moments(*entry.moments)
    return dataset


def check_disjoint(name: str, splits: dict[str, Split]) -> None:
    """Raise UserError if two splits share a class, by its name."""
    seen: dict[str, str] = {}
    for split, content in splits.items():
        for class_name in content.class_names:
            if class_name in seen:
                raise UserError(
                    f"class {class_name!r} of data set {name!r} is in both {seen[class_name]!r} and {split!r}: "
                    "few-shot splits must hold different classes; prepare it anew."
                )
            seen[class_name] = split


def check_same(name: str, splits: dict[str, Split]) -> None:
    """Raise UserError unless all splits have the same classes."""
    for split, content in splits.items():
        odd = set(content.class_names) ^ set(splits["train"].class_names)
        if odd:
            raise UserError(
                f"class {min(odd)!r} of data set {name!r} is in only one of 'train' and {split!r}: splits for "
                "classification must hold the same classes; prepare it anew."
            )


def _decode(folder: Path, splits: Sequence[str], image_size: int, channels: int) -> dict[str, np.ndarray]:
    arrays = {}
    for split in splits:
        decoded = _decode_split(folder, split, image_size, channels)
        arrays |= {f"{split}_{part}": array for part, array in decoded.items()}
    return arrays


def _decode_split(folder: Path, split: str, image_size: int, channels: int) -> dict[str, np.ndarray]:
    """Pictures sorted by class name, then by file name, their labels, and the class names."""
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder_from_directory(folder)
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        keys = [(_text(record["class_name"]), _text(record["file_name"])) for record in records]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        images = np.empty((len(records), image_size, image_size, channels), np.uint8)
        # In a second pass, to their places: sorting the images would take them twice in memory.
        for place, record in zip(np.argsort(order), records, strict=True):
            images[place] = _picture(record["image"], image_size, channels)
    except (OSError, ValueError, RuntimeError, IndexError, KeyError) as error:
        raise UserError(
            f"split {split!r} in {folder} cannot be read ({error}): delete the folder and prepare the set anew."
        ) from error
    names = sorted({class_name for class_name, _ in keys})
    labels = np.searchsorted(names, [keys[index][0] for index in order]).astype(np.int32)
    return {"images": images, "labels": labels, "names": np.array(names)}


def _picture(encoded: bytes, image_size: int, channels: int) -> UInt8[np.ndarray, "s s c"]:
    with Image.open(io.BytesIO(encoded)) as picture:
        return fit_picture(picture, image_size, channels)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
