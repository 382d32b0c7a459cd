"""The one builder of tensorflow-datasets that all our data sets share: pictures with a class name, by split."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from PIL import Image

from common.data.builders.layouts import Example, Layout, read_splits
from common.errors import UserError


class PictureBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of pictures from a folder that the user has (`manual_dir`).

    A subclass says its name, version, description and layouts. Examples hold the picture as the file that it was, its
    class and its file name; classes are strings, so that a set has no list of classes but its own.
    """

    # tfds wants some text here; the layouts say the rest.
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the files of the data set into manual_dir, as one of `layouts`."
    layouts: ClassVar[Sequence[Layout]]
    description: ClassVar[str]
    homepage: ClassVar[str]
    disjoint_classes: ClassVar[bool] = True  # as few-shot splits must be; False: splits share their classes

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "class_name": tfds.features.Text(),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.description,
            homepage=self.homepage,
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        splits = read_splits(self.name, self.layouts, Path(dl_manager.manual_dir))
        self.counts: dict[str, Counter[str]] = {split: Counter() for split in splits}
        return {split: self._generate_examples(split, examples) for split, examples in splits.items()}

    def _generate_examples(self, split: str, examples: Iterable[Example]) -> Iterator[tuple[str, dict[str, Any]]]:
        others = {name: count for name, count in self.counts.items() if name != split}
        for example in examples:
            label = example.class_name
            shared = next((name for name, count in others.items() if label in count), None)
            if self.disjoint_classes and shared:
                raise UserError(
                    f"class {label!r} of data set {self.name!r} is in both {shared!r} and {split!r}: few-shot splits "
                    "must hold different classes."
                )
            self.counts[split][label] += 1
            yield (
                f"{label}/{example.file_name}",
                {"image": _checked(self.name, example), "class_name": label, "file_name": example.file_name},
            )


def _checked(name: str, example: Example) -> io.BytesIO:
    """The bytes of a picture that can be decoded, as RGB; raises UserError."""
    where = example.image if isinstance(example.image, Path) else f"{example.class_name}/{example.file_name}"
    try:
        encoded = example.image.read_bytes() if isinstance(example.image, Path) else example.image
        with Image.open(io.BytesIO(encoded)) as picture:
            picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"picture {where} of data set {name!r} cannot be read ({error}): replace it.") from error
    return io.BytesIO(encoded)
