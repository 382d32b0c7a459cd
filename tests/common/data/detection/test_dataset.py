"""What a detection set cannot be: each gives one sentence."""

import dataclasses

import numpy as np
import pytest

from common.data.detection import DetectionData, DetectionSplit
from common.errors import UserError

GOOD = DetectionSplit(
    images=np.zeros((2, 8, 8, 3), np.uint8),
    boxes=np.tile(np.array([0.1, 0.2, 0.5, 0.6], np.float32), (2, 3, 1)),
    labels=np.array([[0, 1, -1], [-1, -1, -1]], np.int32),
    difficult=np.zeros((2, 3), bool),
    sizes=np.full((2, 2), 8, np.int32),
)


def data(**changes):
    return DetectionData("toys", GOOD, dataclasses.replace(GOOD, **changes), ("car", "doll"), "none", "here")


def boxes(place, value):
    changed = GOOD.boxes.copy()
    changed[place] = value
    return changed


def test_an_image_without_objects_and_boxes_of_padding_are_fine():
    assert "2 images, 2 objects" in data(boxes=boxes((1, 0), (7, 7, -7, -7))).summary()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"boxes": boxes((0, 1), (0.1, 0.2, 0.5, 1.2))},
            r"object 1 of image 0 of toys \(test\) reaches out of the image: its box is \[0.1, 0.2, 0.5, 1.2\]",
        ),
        ({"boxes": boxes((0, 0), (-0.1, 0.2, 0.5, 0.6))}, "object 0 of image 0 of toys .* reaches out of the image"),
        ({"boxes": boxes((0, 0), (np.nan, 0.2, 0.5, 0.6))}, "object 0 of image 0 of toys .* reaches out of the image"),
        ({"boxes": boxes((0, 0), (0.5, 0.2, 0.5, 0.6))}, "object 0 of image 0 of toys .* has no area"),
        ({"labels": GOOD.labels + 1}, r"labels of toys \(test\) must lie in 0..1 .* but reach from 0 to 2"),
        ({"labels": np.full((2, 3), -1, np.int32)}, r"toys \(test\) holds no object that is not difficult"),
        ({"difficult": np.ones((2, 3), bool)}, r"toys \(test\) holds no object that is not difficult"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8)}, r"images of toys \(test\) must be uint8"),
        ({"boxes": GOOD.boxes[:, :2]}, r"must fit its 2 images, but are \(2, 2, 4\), \(2, 3\)"),
    ],
)
def test_what_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        data(**changes)
