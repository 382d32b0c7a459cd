"""ImageNet 32 x 32 from the arrays that it is published in, whose rows hold one colour after the other."""

import pickle

import numpy as np
import pytest

from common.data import load, prepare
from common.errors import UserError

LABELS = {f"train_data_batch_{number}": [number % 3 + 1, 1] for number in range(1, 11)} | {"val_data": [2, 3, 1]}


def rows(labels):
    """Red is 10 times the class and grows by 1 from left to right, green 100, blue 200."""
    red = np.add.outer(10 * np.array(labels, np.uint8), np.tile(np.arange(32, dtype=np.uint8), 32))
    return np.concatenate([red, np.full_like(red, 100), np.full_like(red, 200)], axis=1)


def pickles(root, names=tuple(LABELS)):
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        content = {"data": rows(LABELS[name]), "labels": LABELS[name], "mean": np.zeros(3072)}
        (root / name).write_bytes(pickle.dumps(content, 2))


def archives(root):
    """Each archive in its own folder, as .npz."""
    for name, labels in LABELS.items():
        folder = root / ("val" if name == "val_data" else "train")
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"{name}.npz", data=rows(labels), labels=np.array(labels), mean=np.zeros(3072))


@pytest.mark.parametrize("tree", [pickles, archives])
def test_pictures_have_their_own_class(tree, tmp_path):
    tree(tmp_path / "given")
    prepare.prepare("imagenet32", tmp_path / "out", str(tmp_path / "given"))
    data = load("imagenet32", task="classification", image_size=32, channels=3, path=str(tmp_path / "out"))
    assert data.splits.keys() == {"train", "test"}
    for split, counts in (("train", [13, 4, 3]), ("test", [1, 1, 1])):
        part = data.splits[split]
        assert part.class_names == ("0001", "0002", "0003")
        np.testing.assert_array_equal(np.bincount(part.labels), counts)
        np.testing.assert_array_equal(part.images[:, 0, :, 0], np.add.outer(10 * (part.labels + 1), np.arange(32)))
        assert np.all(part.images[..., 1:] == (100, 200))


def refused(message, root):
    with pytest.raises(UserError, match=message):
        prepare.prepare("imagenet32", root / "out", str(root / "given"))


def test_what_is_wrong_with_the_files(tmp_path):
    given = tmp_path / "given"
    pickles(given, ["train_data_batch_1", "train_data_batch_10"])
    refused("train_data_batch_2 is missing", tmp_path)
    (given / "train_data_batch_10").unlink()
    refused("does not hold data set 'imagenet32': looked there.*val_data", tmp_path)
    for content, message in (
        ({"data": rows([1])}, "must hold a dict with 'data' and 'labels'"),
        ({"data": rows([1])[:, :10], "labels": [1]}, r"must be uint8 \[n, 3072\], but is of shape \[1, 10\]"),
        ({"data": rows([1]), "labels": [1, 2]}, r"holds 1 pictures, but its labels are \[2\]"),
    ):
        (given / "val_data").write_bytes(pickle.dumps(content, 2))
        refused(message, tmp_path)
