"""CIFAR-FS (Bertinetto et al. 2019): the 100 classes of CIFAR-100 with 600 pictures each, 64 / 16 / 20."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from common.data.builders.base import PictureBuilder
from common.data.builders.layouts import Example, Layout, Splits, class_folders, pictures_of
from common.errors import UserError

# The lists of the authors' splits/bertinetto/{val,test}.txt; the other 64 classes are for training.
VALIDATION = frozenset(
    (
        *("beaver", "beetle", "butterfly", "camel", "cattle", "crab", "crocodile", "flatfish", "lamp", "maple_tree"),
        *("motorcycle", "otter", "sea", "shark", "television", "tractor"),
    )
)
TEST = frozenset(
    (
        *("baby", "bed", "bicycle", "chimpanzee", "fox", "leopard", "man", "pickup_truck", "plain", "poppy", "rocket"),
        *("rose", "snail", "sweet_pepper", "table", "telephone", "wardrobe", "whale", "woman", "worm"),
    )
)


def split_of(class_name: str) -> str:
    """Split of a class of CIFAR-100."""
    return "validation" if class_name in VALIDATION else "test" if class_name in TEST else "train"


def _read_archive(root: Path) -> Splits | None:
    """The authors' own archive: all classes together."""
    if not any((root / "data" / label).is_dir() for label in VALIDATION):
        return None
    splits = {"train": [], "validation": [], "test": []}
    for label in sorted((root / "data").iterdir()):
        splits[split_of(label.name)] += pictures_of(label)
    return splits


def _read_prepared(root: Path) -> Splits | None:
    """CIFAR-100 as tensorflow-datasets prepares it: <root>/<version>/."""
    infos = [file for file in root.glob("*/dataset_info.json") if root.name == "cifar100"]
    if not infos:
        return None
    try:
        builder: Any = tfds.builder_from_directory(max(infos).parent)
        decoders = {"image": tfds.decode.SkipDecoding()}  # the PNG files as they are
        sources = {split: builder.as_data_source(split, decoders=decoders) for split in ("train", "test")}
    except (OSError, ValueError, RuntimeError, NotImplementedError, AttributeError) as error:
        raise UserError(f"cifar100 in {root} cannot be read as array_record ({error}): prepare it anew.") from error
    names = builder.info.features["label"].names
    return {split: _of_split(sources, names, split) for split in ("train", "validation", "test")}


def _of_split(sources: dict[str, Any], names: list[str], split: str) -> Iterator[Example]:
    for published, source in sources.items():
        for place, record in enumerate(source):
            label = names[record["label"]]
            if split_of(label) == split:
                yield Example(label, f"{published}-{place:05d}.png", record["image"])


class CifarFs(PictureBuilder):
    """CIFAR-FS from the authors' archive, from a prepared CIFAR-100, or from class folders that are split already."""

    name = "cifar_fs"
    VERSION = tfds.core.Version("1.0.0")
    description = "The classes of CIFAR-100 with 600 pictures each: 64 to train, 16 to validate, 20 to test."
    homepage = "https://arxiv.org/abs/1805.08136"
    layouts = (
        Layout("data/<class>/<image>, the authors' archive", _read_archive),
        Layout("cifar100/<version>/, as `python -m common.data.prepare --name=cifar100` leaves it", _read_prepared),
        class_folders(),
    )
