"""PASCAL VOC 2007, alone or with 2012 to learn from, as tensorflow-datasets prepares them; read without TensorFlow.

Both years are configs of one catalogue entry: <data dir>/voc/2007/<version> and <data dir>/voc/2012/<version>. Images
are kept in memory: 5011 + 4952 of them for 2007, 11540 more for 2012, 0.44 MB each at 384 pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from common.data import tfds_source
from common.data.detection.dataset import DetectionData, DetectionSplit
from common.data.images import fit_picture
from common.data.missing import missing_data
from common.data.request import Request
from common.errors import UserError

_YEARS = {"voc2007": ("2007",), "voc2007_2012": ("2007", "2012")}
_TEST_YEAR = "2007"  # the labels of 2012's test images were never published


def load(request: Request) -> DetectionData:
    """Learn from train + validation of the years, test on the test images of 2007.

    Raises:
      UserError: not prepared, prepared as tfrecord, incomplete or damaged, or any option.
    """
    request.read_options({})
    folders = {year: _find(year, request) for year in _YEARS[request.name]}
    for year, folder in folders.items():
        tfds_source.check_files(
            f"voc/{year}", folder, ("train", "validation", *(["test"] if year == _TEST_YEAR else []))
        )
    parts = [
        _read(folder, split, request.image_size) for folder in folders.values() for split in ("train", "validation")
    ]
    train = _stack(np.concatenate([images for images, _ in parts]), [one for _, found in parts for one in found])
    test = _stack(*_read(folders[_TEST_YEAR], "test", request.image_size))
    entry, names = tfds_source.ENTRIES[f"voc/{_TEST_YEAR}"], tfds_source.class_names(folders[_TEST_YEAR], "labels")
    return DetectionData(request.name, train, test, names, entry.licence, f"{entry.source} ({' + '.join(folders)})")


def _find(year: str, request: Request) -> Path:
    name = f"voc/{year}"
    folder = tfds_source.find_prepared(name, request.path)
    if folder is None:
        looked, remedy = [tfds_source.data_dir(request.path) / name], tfds_source.how_to_prepare(name)
        raise missing_data(name, looked, remedy, "--config.detection.dataset=shapes")
    return folder


class _Found(NamedTuple):
    """Objects of one image, and its height and width."""

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    size: tuple[int, int]


def _read(folder: Path, split: str, image_size: int) -> tuple[np.ndarray, list[_Found]]:
    """Images [n, S, S, 3] and their objects."""
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder_from_directory(folder)
        records = builder.as_data_source(split)
        images = np.empty((len(records), image_size, image_size, 3), np.uint8)
        found = []
        for index, record in enumerate(records):
            images[index] = fit_picture(Image.fromarray(record["image"]), image_size, 3)
            objects = record["objects"]
            boxes = np.asarray(objects["bbox"], np.float32).reshape(-1, 4)
            labels, difficult = np.asarray(objects["label"], np.int32), np.asarray(objects["is_difficult"], bool)
            found.append(_Found(boxes, labels, difficult, record["image"].shape[:2]))
    except (OSError, ValueError, RuntimeError, IndexError, KeyError) as error:
        raise UserError(
            f"split {split!r} in {folder} cannot be read ({error}): delete the folder and prepare the set anew."
        ) from error
    return images, found


def _stack(images: np.ndarray, found: list[_Found]) -> DetectionSplit:
    most = max(len(one.labels) for one in found)
    boxes = np.zeros((len(found), most, 4), np.float32)
    labels, difficult = np.full((len(found), most), -1, np.int32), np.zeros((len(found), most), bool)
    for row, one in enumerate(found):
        objects = slice(0, len(one.labels))
        boxes[row, objects], labels[row, objects], difficult[row, objects] = one.boxes, one.labels, one.difficult
    return DetectionSplit(images, boxes, labels, difficult, np.array([one.size for one in found], np.int32))
