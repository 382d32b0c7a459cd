"""mini-ImageNet: 100 classes of ImageNet with 600 pictures each, 64 / 16 / 20 by the lists of Ravi and Larochelle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from common.data.builders.arrays import check_images, png, read_pickle
from common.data.builders.base import PictureBuilder
from common.data.builders.layouts import Example, class_folders, csv_lists, file_per_split
from common.errors import UserError


def read_cache(file: Path) -> Iterator[Example]:
    """Pictures of a pickled {"image_data": uint8 [n, 84, 84, 3], "class_dict": {class: [places]}}.

    Raises UserError unless every place exists and belongs to one class.
    """
    content = read_pickle(file)
    if not isinstance(content, dict) or not {"image_data", "class_dict"} <= content.keys():
        raise UserError(f"file {file} must hold a dict with 'image_data' and 'class_dict'.")
    images, seen = check_images(file, content["image_data"]), set()
    for label, places in sorted(content["class_dict"].items()):
        for place in sorted(int(place) for place in places):
            if place in seen or not 0 <= place < len(images):
                raise UserError(
                    f"image {place} in 'class_dict' of {file} must be one of its {len(images)} images, in one class."
                )
            seen.add(place)
            yield Example(str(label), f"{place:08d}.png", png(images[place]))


class MiniImagenet(PictureBuilder):
    """mini-ImageNet from class folders, from lists beside images, or from the pickled arrays."""

    name = "mini_imagenet"
    VERSION = tfds.core.Version("1.0.0")
    description = "100 classes of ImageNet with 600 pictures each, split into 64, 16 and 20 classes."
    homepage = "https://openreview.net/forum?id=rJY0-Kcll"
    layouts = (
        class_folders(),
        csv_lists(),
        file_per_split("mini-imagenet-cache-{train,val,test}.pkl", "mini-imagenet-cache-{}", (".pkl",), read_cache),
    )
