"""Tiny-ImageNet from the published archive, whose validation pictures lie together, and from class folders."""

import numpy as np
import pytest

from common.data import load, prepare
from common.errors import UserError
from tests.common.data.dummy_sets import write

CLASSES = ("n01", "n02", "n03")


def published(root):
    """train/<class>/images/<class>_<i>.JPEG in PNG, val/images/val_<i>, val/val_annotations.txt, unlabelled test."""
    lines = []
    for number, label in enumerate(CLASSES, 1):
        for index in range(4):
            write(root / "train" / label / "images" / f"{label}_{index}.png", number, index)
        (root / "train" / label / f"{label}_boxes.txt").write_text("no picture")
    for place in range(6):  # the classes take turns
        label = CLASSES[place % 3]
        write(root / "val" / "images" / f"val_{place}.png", place % 3 + 1, place)
        lines.append(f"val_{place}.png\t{label}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    write(root / "test" / "images" / "test_0.png", 1, 0)


def sorted_folders(root):
    for number, label in enumerate(CLASSES, 1):
        for index in range(4):
            write(root / "train" / label / f"{index}.png", number, index)
        for index in range(2):
            write(root / "val" / label / f"{index}.png", number, index)


@pytest.mark.parametrize("tree", [published, sorted_folders])
def test_pictures_have_their_own_class(tree, tmp_path, capsys):
    tree(tmp_path / "given" / "tiny-imagenet-200")
    prepare.prepare("tiny_imagenet", tmp_path / "out", str(tmp_path / "given"))
    assert "train: 3 classes, 12 pictures, 4 a class" in capsys.readouterr().out
    data = load("tiny_imagenet", task="classification", image_size=64, channels=3, path=str(tmp_path / "out"))
    assert data.splits.keys() == {"train", "test"}
    for split, per_class in (("train", 4), ("test", 2)):
        part = data.splits[split]
        assert part.class_names == CLASSES
        np.testing.assert_array_equal(np.bincount(part.labels), [per_class] * 3)
        np.testing.assert_array_equal(part.images[:, 32, 32, 0], part.labels + 1)  # red tells the class


def refused(message, root):
    with pytest.raises(UserError, match=message):
        prepare.prepare("tiny_imagenet", root / "out", str(root / "given"))


def test_what_is_wrong_with_the_files(tmp_path):
    published(tmp_path / "given")
    annotations = tmp_path / "given" / "val" / "val_annotations.txt"
    good = annotations.read_text()
    annotations.write_text(good + "val_9.png\tn01\t0\n")
    refused(r"picture .*val_9.png, named in line 7 of .*val_annotations.txt, is missing", tmp_path)
    annotations.write_text(good + "val_1.png\n")
    refused("line 7 of .*val_annotations.txt must hold a file name and a class", tmp_path)
    annotations.write_text(good.replace("n03", "n04"))
    refused("class 'n03' is in only one of the two splits", tmp_path)
    annotations.unlink()
    refused("does not hold data set 'tiny_imagenet': looked there.*val_annotations.txt; or", tmp_path)
