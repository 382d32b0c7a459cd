"""What every data source hands over: named splits of uint8 images in memory, with labels and class names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt8

from common.errors import UserError


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one split.

    Attributes:
      images: uint8 [n, H, W, C], values 0..255, C = 1 (grey) or 3 (RGB).
      labels: int32 [n], index into `class_names`.
      class_names: one name per class, in label order.

    Raises:
      UserError: wrong dtype or shape, no image, or a label outside the classes.
    """

    # Checked below with sentences for users, so not annotated with shapes.
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise UserError(
                f"images must be uint8 [n, H, W, C] with C = 1 or 3, but are {images.dtype} {list(images.shape)}."
            )
        if labels.dtype != np.int32 or labels.shape != images.shape[:1]:
            raise UserError(
                f"labels must be int32 [{len(images)}], one per image, but are {labels.dtype} {list(labels.shape)}."
            )
        if not len(images):
            raise UserError("a split must hold at least one image, but this one is empty.")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(self.class_names):
            raise UserError(
                f"labels must lie in 0..{len(self.class_names) - 1} ({len(self.class_names)} class names), "
                f"but reach from {low} to {high}."
            )

    @property
    def num_classes(self) -> int:
        """Number of classes of this split."""
        return len(self.class_names)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    Attributes:
      name: registry name.
      splits: 'train', 'test' and, where there is one, 'validation'; all images have one shape.
      mean: per-channel mean of the train images scaled to [0, 1].
      std: per-channel standard deviation, same scale, always > 0.
      licence: licence of the images.
      source: where the images come from.

    Raises:
      UserError: unknown or missing splits, unequal image shapes, or mean and std that do not fit the channels.
    """

    name: str
    splits: dict[str, Split]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    source: str

    def __post_init__(self) -> None:
        unknown = sorted(set(self.splits) - {"train", "validation", "test"})
        if unknown or not {"train", "test"} <= set(self.splits):
            raise UserError(
                f"data set {self.name!r} must have the splits 'train' and 'test' and may have 'validation', "
                f"but has {sorted(self.splits)}."
            )
        shapes = {name: split.images.shape[1:] for name, split in self.splits.items()}
        if len(set(shapes.values())) != 1:
            raise UserError(f"all splits of data set {self.name!r} must have one image shape, but have {shapes}.")
        channels = shapes["train"][-1]
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            raise UserError(
                f"mean and std of data set {self.name!r} must have {channels} values and std must be positive, "
                f"but are {self.mean} and {self.std}."
            )

    @property
    def num_classes(self) -> int:
        """Number of classes of the train split."""
        return self.splits["train"].num_classes

    def summary(self) -> str:
        """One line: name, source, licence, and what each split holds."""
        counts = (f"{name} {s.num_classes} classes, {len(s.images)} images" for name, s in self.splits.items())
        return f"{self.name} ({self.source}; licence: {self.licence}): {'; '.join(counts)}"

    def with_moments(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Dataset:
        """The same data with another mean and std, published ones for example."""
        return dataclasses.replace(self, mean=mean, std=std)


def channel_statistics(images: UInt8[np.ndarray, "n h w c"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation of uint8 images, scaled to [0, 1].

    Counted from histograms: exact, independent of the order of images, and without a float copy of the images. A
    constant channel gets a standard deviation of 1, so that it can be divided by.
    """
    levels: Float64[np.ndarray, " 256"] = np.arange(256) / 255.0
    means, stds = [], []
    for channel in range(images.shape[-1]):
        share = sum(np.bincount(image[..., channel].ravel(), minlength=256) for image in images)
        share = share / np.sum(share)
        mean = float(share @ levels)
        std = float(np.sqrt(share @ (levels - mean) ** 2))
        means.append(mean)
        stds.append(std if std > 0 else 1.0)
    return tuple(means), tuple(stds)


def make_dataset(name: str, splits: Mapping[str, Split], *, licence: str, source: str) -> Dataset:
    """A Dataset whose mean and std are measured on its train split."""
    mean, std = channel_statistics(splits["train"].images)
    return Dataset(name=name, splits=dict(splits), mean=mean, std=std, licence=licence, source=source)
