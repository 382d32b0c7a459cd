import numpy as np
import pytest

from common.data.dataset import Dataset, Split, channel_statistics, make_dataset
from common.errors import UserError


def images(count=4, size=3, channels=1):
    return np.arange(count * size * size * channels, dtype=np.uint8).reshape(count, size, size, channels)


def split(count=4, **kwargs):
    return Split(images(count, **kwargs), np.arange(count, dtype=np.int32) % 2, ("a", "b"))


def test_split_and_num_classes():
    data = make_dataset("toy", {"train": split(), "test": split(2)}, licence="none", source="test")
    assert data.num_classes == 2
    assert data.splits["test"].num_classes == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((images().astype(np.float32), np.zeros(4, np.int32), ("a",)), "images must be uint8"),
        ((images()[..., 0], np.zeros(4, np.int32), ("a",)), "images must be uint8"),
        ((images(channels=2), np.zeros(4, np.int32), ("a",)), "C = 1 or 3"),
        ((images(), np.zeros(4, np.int64), ("a",)), r"labels must be int32 \[4\]"),
        ((images(), np.zeros(3, np.int32), ("a",)), r"labels must be int32 \[4\]"),
        ((images(0), np.zeros(0, np.int32), ("a",)), "at least one image"),
        ((images(), np.array([0, 0, 0, 1], np.int32), ("a",)), r"0\.\.0 .* reach from 0 to 1"),
        ((images(), np.array([-1, 0, 0, 0], np.int32), ("a",)), "reach from -1 to 0"),
    ],
)
def test_bad_splits(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        Split(*arguments)


@pytest.mark.parametrize(
    ("splits", "mean", "std", "sentence"),
    [
        ({"train": split()}, (0.5,), (0.2,), "'train' and 'test'"),
        ({"train": split(), "test": split(), "val": split()}, (0.5,), (0.2,), "may have 'validation'"),
        ({"train": split(), "test": split(size=5)}, (0.5,), (0.2,), "one image shape"),
        ({"train": split(), "test": split()}, (0.5, 0.5, 0.5), (0.2,), "must have 1 values"),
        ({"train": split(), "test": split()}, (0.5,), (0.0,), "std must be positive"),
    ],
)
def test_bad_datasets(splits, mean, std, sentence):
    with pytest.raises(UserError, match=sentence):
        Dataset("toy", splits, mean, std, "none", "test")


def test_statistics_equal_numpy():
    pictures = np.random.default_rng(0).integers(0, 256, (7, 5, 5, 3), np.uint8)
    mean, std = channel_statistics(pictures)
    np.testing.assert_allclose(mean, (pictures / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (pictures / 255).std((0, 1, 2)), rtol=1e-12)


def test_constant_channel_can_be_divided_by():
    assert channel_statistics(np.full((2, 3, 3, 1), 51, np.uint8)) == ((0.2,), (1.0,))
