"""tensorflow-datasets that are already prepared on this machine, read without TensorFlow and without a network.

Only the array_record format can be read by index without TensorFlow. Everything is checked on the folder before
tensorflow-datasets is imported: asked for a set that is not there, it retries a download for minutes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from common.data.dataset import Dataset, Split, make_dataset
from common.data.images import fit_picture
from common.data.missing import missing_data
from common.data.request import Request
from common.errors import UserError


@dataclass(frozen=True)
class Entry:
    """What is known of a data set without its files."""

    licence: str
    source: str


ENTRIES = {
    "cifar10": Entry("not stated by its authors", "Krizhevsky 2009, through tensorflow-datasets"),
    "cifar100": Entry("not stated by its authors", "Krizhevsky 2009, through tensorflow-datasets"),
    "svhn_cropped": Entry("non-commercial use only", "Netzer et al. 2011, through tensorflow-datasets"),
    "stl10": Entry("not stated by its authors; from ImageNet", "Coates et al. 2011, through tensorflow-datasets"),
    "omniglot": Entry("MIT", "Lake et al. 2015, through tensorflow-datasets"),
    "fashion_mnist": Entry("MIT", "Xiao et al. 2017, through tensorflow-datasets"),
    # Read by common.data.retrieval and common.data.detection
    "caltech_birds2011": Entry("non-commercial research and education", "Wah et al. 2011, through tensorflow-datasets"),
    "cars196": Entry("not stated by its authors", "Krause et al. 2013, through tensorflow-datasets"),
    "voc/2007": Entry("Flickr's terms of use", "Everingham et al. 2010, through tensorflow-datasets"),
    "voc/2012": Entry("Flickr's terms of use", "Everingham et al. 2010, through tensorflow-datasets"),
}
# Omniglot's 1623 characters: 1100 train, 100 validation, 423 test, the usual sizes in few-shot papers.
_OMNIGLOT_SHARES = (1100 / 1623, 1200 / 1623)


def load(request: Request) -> Dataset:
    """A prepared array_record set from `path`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Classification: the published 'train' and 'test'. Few-shot (omniglot): characters of both published splits are
    pooled and split anew, 1100 train, 100 validation, 423 test, by one fixed shuffle; the seed changes nothing.

    Raises:
      UserError: not prepared, prepared as tfrecord, incomplete or damaged, or any option.
    """
    request.read_options({})
    folder = find_prepared(request.name, request.path)
    if folder is None:
        raise missing_data(request.name, [data_dir(request.path) / request.name], how_to_prepare(request.name))
    check_files(request.name, folder, ("train", "test"))
    parts = {split: read_split(folder, split, request.image_size, request.channels) for split in ("train", "test")}
    if request.task == "fewshot":
        splits = _split_characters(*(np.concatenate(arrays) for arrays in zip(*parts.values(), strict=True)))
    else:
        names = class_names(folder)
        splits = {split: Split(images, labels, names) for split, (images, labels) in parts.items()}
    return make_dataset(
        request.name, splits, licence=ENTRIES[request.name].licence, source=ENTRIES[request.name].source
    )


def load_images(
    name: str, split: str, image_size: int, channels: int, path: str | None = None
) -> UInt8[np.ndarray, "n s s c"]:
    """The images alone of any split of a prepared set, such as the 'unlabelled' one of stl10. Raises UserError."""
    folder = find_prepared(name, path)
    if folder is None:
        raise missing_data(name, [data_dir(path) / name], how_to_prepare(name))
    check_files(name, folder, (split,))
    return read_split(folder, split, image_size, channels)[0]


def data_dir(path: str | None) -> Path:
    """Folder that holds prepared sets: `path`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(path or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find_prepared(name: str, path: str | None) -> Path | None:
    """Folder of the newest prepared version of `name` (<data_dir>/<name>/<version>), or None."""
    versions = [
        (tuple(int(part) for part in info.parent.name.split(".")), info.parent)
        for info in (data_dir(path) / name).glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)
    ]
    return max(versions)[1] if versions else None


def how_to_prepare(name: str) -> str:
    """What to type, once, to prepare a set so that it can be read here."""
    if name in ENTRIES:
        first, own = "with a network and after `pip install -e .[data]`, ", ""
    else:
        first, own = "", " --manual_dir=<the folder or archive you have>"
    return (
        f"prepare it once, {first}by `python -m common.data.prepare --name={name}{own}`, then set "
        "--config.dataset_path or TFDS_DATA_DIR to its --data_dir if that is not ~/tensorflow_datasets"
    )


def check_files(name: str, folder: Path, splits: Sequence[str]) -> None:
    """Raise UserError unless a prepared set is array_record and the files of all splits are there."""
    info_file = folder / "dataset_info.json"
    try:
        info = json.loads(info_file.read_text())
        shards = {split["name"]: len(split["shardLengths"]) for split in info["splits"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"file {info_file} cannot be read ({error}): {how_to_prepare(name)}.") from error
    file_format = info.get("fileFormat", "tfrecord")
    if file_format != "array_record":
        raise UserError(
            f"data set {name!r} in {folder} is prepared as {file_format}, which needs TensorFlow to be read; "
            f"array_record is needed: {how_to_prepare(name)}."
        )
    for split in splits:
        count = shards.get(split, 0)
        prefix = name.partition("/")[0]  # voc/2007: a set with configs
        files = [folder / f"{prefix}-{split}.array_record-{shard:05d}-of-{count:05d}" for shard in range(count)]
        absent = [file for file in files if not file.is_file()]
        if absent or not files:
            what = f"file {absent[0]}" if absent else f"split {split!r} in {info_file}"
            raise UserError(f"data set {name!r} is incomplete, {what} is missing: {how_to_prepare(name)}.")


def read_split(
    folder: Path,
    split: str,
    image_size: int,
    channels: int,
    prepare: Callable[[Image.Image], Image.Image] | None = None,
) -> tuple[UInt8[np.ndarray, "n s s c"], Int32[np.ndarray, " n"]]:
    """Images and labels of a split; `prepare`: what is done to a picture before it is resized."""
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder_from_directory(folder)
        records = builder.as_data_source(split)
        images = np.empty((len(records), image_size, image_size, channels), np.uint8)
        labels = np.empty(len(records), np.int32)
        for index, record in enumerate(records):
            pixels = record["image"]
            picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
            images[index] = fit_picture(prepare(picture) if prepare else picture, image_size, channels)
            labels[index] = record["label"]
    except (OSError, ValueError, RuntimeError, IndexError, KeyError) as error:
        raise UserError(
            f"split {split!r} in {folder} cannot be read ({error}): delete the folder and prepare the set anew."
        ) from error
    return images, labels


def class_names(folder: Path, feature: str = "label") -> tuple[str, ...]:
    """Names of the classes of a prepared set, in label order."""
    import tensorflow_datasets as tfds

    features: Any = tfds.builder_from_directory(folder).info.features
    return tuple(features[feature].names)


def _split_characters(images: UInt8[np.ndarray, "n s s c"], labels: Int32[np.ndarray, " n"]) -> dict[str, Split]:
    characters = np.random.default_rng(0).permutation(np.unique(labels))
    bounds = [round(share * len(characters)) for share in _OMNIGLOT_SHARES]
    splits = {}
    for split, chosen in zip(("train", "validation", "test"), np.split(characters, bounds), strict=True):
        chosen = np.sort(chosen)
        members = np.flatnonzero(np.isin(labels, chosen))
        members = members[np.argsort(labels[members], kind="stable")]
        new_labels = np.searchsorted(chosen, labels[members]).astype(np.int32)
        splits[split] = Split(images[members], new_labels, tuple(f"character {label:04d}" for label in chosen))
    return splits
