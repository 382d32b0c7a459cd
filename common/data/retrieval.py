"""Data for metric learning: classes to learn from and other classes to be searched and clustered.

Any few-shot data set is one (its train and test classes are disjoint). CUB-200-2011 and Cars196 of the catalogue
have train and test splits that share their classes, which is *not* the split of metric learning: both are pooled here,
and the first half of the classes is learned from, the second half tested on [Song et al. 2016].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from common.data import registry, tfds_source
from common.data.dataset import Split
from common.data.missing import missing_data
from common.errors import UserError, did_you_mean

CLASS_SPLITS = ("caltech_birds2011", "cars196")


class RetrievalData(NamedTuple):
    """Two splits without a common class."""

    name: str
    train: Split
    test: Split
    source: str


def names() -> tuple[str, ...]:
    """Names that `load` knows."""
    return (*registry.names("fewshot"), *CLASS_SPLITS)


def load(
    name: str, *, image_size: int, path: str = "", seed: int = 0, options: Mapping[str, object] | None = None
) -> RetrievalData:
    """Data set `name` in memory, RGB.

    Args:
      name: one of `names()`.
      image_size: side in pixels. CUB and Cars: of the middle square of each picture; others are resized whole.
      path, seed, options: see `common.data.load`; CUB and Cars have no options.

    Raises:
      UserError: unknown name or option, missing or damaged files, a test split of fewer than two classes.
    """
    if name not in names():
        raise UserError(
            f"unknown data set for clustering {name!r}{did_you_mean(name, names())}; known are: {', '.join(names())}."
        )
    if name in CLASS_SPLITS:
        if options:
            raise UserError(f"data set {name!r} has no options, but {', '.join(map(repr, options))} is set.")
        data = _class_split(name, image_size, path)
    else:
        dataset = registry.load(
            name, task="fewshot", image_size=image_size, channels=3, path=path or None, seed=seed, options=options
        )
        data = RetrievalData(name, dataset.splits["train"], dataset.splits["test"], dataset.source)
    if data.test.num_classes < 2:
        raise UserError(f"data set {name!r} has {data.test.num_classes} test class, but clustering needs at least 2.")
    return data


def middle_square(picture: Image.Image) -> Image.Image:
    """The largest square in the middle of a picture."""
    side = min(picture.size)
    left, top = ((extent - side) // 2 for extent in picture.size)
    return picture.crop((left, top, left + side, top + side))


def _class_split(name: str, image_size: int, path: str) -> RetrievalData:
    folder = tfds_source.find_prepared(name, path)
    if folder is None:
        looked, remedy = [tfds_source.data_dir(path) / name], tfds_source.how_to_prepare(name)
        raise missing_data(name, looked, remedy, "--config.clustering.dataset=glyphs")
    tfds_source.check_files(name, folder, ("train", "test"))
    parts = [tfds_source.read_split(folder, split, image_size, 3, middle_square) for split in ("train", "test")]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    class_names = tfds_source.class_names(folder)
    half = len(class_names) // 2

    def part(first: int, last: int) -> Split:
        members = np.flatnonzero((labels >= first) & (labels < last))
        return Split(images[members], (labels[members] - first).astype(np.int32), class_names[first:last])

    source = tfds_source.ENTRIES[name].source
    return RetrievalData(name, part(0, half), part(half, len(class_names)), source)
