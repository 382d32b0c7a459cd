"""What classifiers train on and are tested on, from the fields that their configs share."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from common.config import check
from common.data.dataset import Dataset, Split, make_dataset
from common.data.registry import load


class Parts(NamedTuple):
    """Images to learn from, and images held out from that.

    Attributes:
      train: all of it is trained on.
      held_out_images: uint8 [n, H, W, C]: those that choose the best epoch, then the test images.
      held_out_labels: int32 [n].
      selection: places among the held-out images of those that choose the best epoch.
      test: places of the test images; with `selection = "test"` the same.
    """

    train: Split
    held_out_images: np.ndarray
    held_out_labels: np.ndarray
    selection: range
    test: range


def load_dataset(config: ConfigDict) -> Dataset:
    """The data set that the fields dataset, dataset_path, glyphs, image_size, channels and per_class ask for."""
    dataset = load(
        config.dataset,
        task="classification",
        image_size=config.image_size,
        channels=config.channels,
        path=config.dataset_path or None,
        options=config.glyphs.to_dict() if config.dataset == "glyphs" else {},
    )
    return at_most(dataset, config.per_class.to_dict())


def divide(dataset: Dataset, selection: str, held_out_share: float) -> Parts:
    """Train and held-out parts.

    Args:
      dataset: with or without a validation split.
      selection: "test": the test images choose the best epoch too (as much official code does); "held_out": the
        validation split does, or where there is none a share of the training images, which are not trained on then.
      held_out_share: that share, in 0..1.
    """
    train, test = dataset.splits["train"], dataset.splits["test"]
    if selection == "test":
        every = range(len(test.labels))
        return Parts(train, test.images, test.labels, every, every)
    if "validation" in dataset.splits:
        chosen = dataset.splits["validation"]
    else:
        order = np.random.default_rng(0).permutation(len(train.labels))
        size = max(1, round(held_out_share * len(order)))
        chosen, train = (take(train, np.sort(places)) for places in (order[:size], order[size:]))
    images = np.concatenate([chosen.images, test.images])
    labels = np.concatenate([chosen.labels, test.labels])
    return Parts(train, images, labels, range(len(chosen.labels)), range(len(chosen.labels), len(labels)))


def at_most(dataset: Dataset, per_class: Mapping[str, int]) -> Dataset:
    """Splits cut down to some images of each class, drawn once and for all, mean and std measured anew; 0: all."""
    if not any(per_class.values()):
        return dataset

    def cut(split: Split, most: int) -> Split:
        return take(split, _places(split, lambda size: min(most, size), seed=0)) if most else split

    splits = {name: cut(split, per_class.get(name, 0)) for name, split in dataset.splits.items()}
    return make_dataset(dataset.name, splits, licence=dataset.licence, source=dataset.source)


def take(split: Split, places: Int[np.ndarray, " m"]) -> Split:
    """The images of these places."""
    return Split(split.images[places], split.labels[places], split.class_names)


def few_samples(split: Split, share: float | int, seed: int) -> Split:
    """`share` of each class's images, see `few_places`."""
    return split if share == 1 else take(split, few_places(split, share, seed))


def few_places(split: Split, share: float | int, seed: int) -> Int[np.ndarray, " m"]:
    """Places, rising, of `share` of each class's images, rounded, at least one; which ones is fixed by `seed`."""
    return _places(split, lambda size: max(1, round(share * size)), seed)


def _places(split: Split, number: Callable[[int], int], seed: int) -> Int[np.ndarray, " m"]:
    """Places, rising, of `number(how many there are)` images of each class; which ones is fixed by `seed`."""
    random = np.random.default_rng([seed, 0])
    kept = []
    for label in range(split.num_classes):
        places = np.flatnonzero(split.labels == label)
        kept.append(random.permutation(places)[: number(len(places))])
    return np.sort(np.concatenate(kept))


def check_fields(config: ConfigDict) -> None:
    """Raise UserError if `held_out_share`, `per_class`, `mean` or `std` cannot be."""
    check(config, "held_out_share", 0 < config.held_out_share < 1, "must lie between 0 and 1")
    check_per_class(config)
    check_moments(config, config.channels)


def check_per_class(config: ConfigDict) -> None:
    """Raise UserError if `per_class` cannot be."""
    for split, number in config.per_class.items():
        check(config, f"per_class.{split}", number >= 0, "must be 0 (all images) or a number of images")


def check_moments(config: ConfigDict, channels: int) -> None:
    """Raise UserError if `mean` or `std` cannot be."""
    for field in ("mean", "std"):
        fits = len(getattr(config, field)) in (0, channels)
        check(config, field, fits, f"must be empty (measured) or have {channels} numbers, one per channel")


def moments(config: ConfigDict, dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel in [0, 1]: the config's, or where it gives none the data's own."""
    return tuple(config.mean) or dataset.mean, tuple(config.std) or dataset.std


def means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Exact means of per-image values over all images."""
    return {name: float(np.mean(array, dtype=np.float64)) for name, array in values.items()}
