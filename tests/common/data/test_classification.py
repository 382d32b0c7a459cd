"""Which images a classifier trains on and which are held out."""

import numpy as np
import pytest

from common.data import Split, classification
from common.data.dataset import make_dataset


def split(count, first, classes=4):
    images = np.arange(first, first + count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    names = tuple("abcd"[:classes])
    return Split(images, np.arange(count, dtype=np.int32) % classes, names)


def dataset(**splits):
    return make_dataset("toy", splits, licence="none", source="numbers")


def values(images):
    return sorted(images.ravel().tolist())


def test_test_images_choose_the_best_epoch_officially():
    parts = classification.divide(dataset(train=split(20, 0), test=split(8, 100)), "test", 0.25)
    assert values(parts.train.images) == list(range(20))
    assert values(parts.held_out_images) == list(range(100, 108))
    assert parts.selection == parts.test == range(8)


@pytest.mark.parametrize("with_validation", [False, True])
def test_held_out_images_are_not_trained_on(with_validation):
    splits = {"train": split(20, 0), "test": split(8, 100)}
    if with_validation:
        splits["validation"] = split(4, 200)
    parts = classification.divide(dataset(**splits), "held_out", 0.25)
    chosen = parts.held_out_images[np.array(parts.selection)]
    assert values(parts.held_out_images[np.array(parts.test)]) == list(range(100, 108))
    assert (
        values(np.concatenate([parts.train.images, chosen]))
        == list(range(20)) + list(range(200, 204)) * with_validation
    )
    assert len(parts.selection) == (4 if with_validation else 5)
    of_images = parts.held_out_images.ravel() % 4  # as they were labelled
    np.testing.assert_array_equal(parts.held_out_labels, of_images)


def test_few_samples_are_balanced_and_fixed_by_the_seed():
    whole = split(40, 0)
    some = classification.few_samples(whole, 0.25, seed=1)
    assert np.bincount(some.labels).tolist() == [2, 2, 2, 2]
    np.testing.assert_array_equal(some.labels, some.images.ravel() % 4)
    np.testing.assert_array_equal(some.images, classification.few_samples(whole, 0.25, seed=1).images)
    assert values(some.images) != values(classification.few_samples(whole, 0.25, seed=2).images)
    assert np.bincount(classification.few_samples(whole, 0.01, seed=1).labels).tolist() == [1, 1, 1, 1]
    assert classification.few_samples(whole, 1.0, seed=1) is whole


def test_at_most_so_many_images_of_each_class():
    whole = dataset(train=split(40, 0), test=split(8, 100), validation=split(12, 200))
    assert classification.at_most(whole, {"train": 0, "test": 0}) is whole
    some = classification.at_most(whole, {"train": 3, "test": 5})
    assert np.bincount(some.splits["train"].labels).tolist() == [3, 3, 3, 3]
    np.testing.assert_array_equal(some.splits["train"].labels, some.splits["train"].images.ravel() % 4)
    assert values(some.splits["test"].images) == list(range(100, 108))
    assert values(some.splits["validation"].images) == list(range(200, 212))
    assert some.mean == pytest.approx((some.splits["train"].images.mean() / 255,))
    again = classification.at_most(whole, {"train": 3, "test": 5})
    np.testing.assert_array_equal(some.splits["train"].images, again.splits["train"].images)
