"""Drawn shapes: the golden images, boxes that are tight, what cannot be asked for."""

import numpy as np
import pytest

from common.data import detection
from common.data.detection import shapes
from common.errors import UserError
from tests import golden_files


def load(**options):
    return detection.load("shapes", image_size=32, options={"train_images": 6, "test_images": 3} | options)


def test_matches_the_golden_exactly():
    golden = golden_files.load("multitask", "shapes")
    for place, index in enumerate(golden["indices"]):
        found = shapes.draw(int(golden["seed"]), int(index), int(golden["size"]), int(golden["max_objects"]))
        for ours, name in zip(found, ("images", "boxes", "labels"), strict=True):
            np.testing.assert_array_equal(ours, golden[name][place])


@pytest.mark.parametrize("label", range(4))
@pytest.mark.parametrize("side", [5, 10, 21])
def test_every_shape_touches_all_edges_of_its_box(label, side):
    mask = shapes.mask(label, side)
    assert all(edge.any() for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))


def test_loads_the_same_from_the_cache_and_splits_do_not_overlap():
    first, again = load(), load()
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(first, split).images, getattr(again, split).images)
    assert first.train.images.shape == (6, 32, 32, 3)
    assert first.test.boxes.shape == (3, 4, 4)
    image, boxes, labels = shapes.draw(0, shapes.FIRST_TEST_INDEX, 32)
    np.testing.assert_array_equal(first.test.images[0], image)
    np.testing.assert_array_equal(first.test.boxes[0], boxes)
    np.testing.assert_array_equal(first.test.labels[0], labels)
    assert "4 classes; train: 6 images" in first.summary()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_images": 0}, "option 'train_images' of data set 'shapes' must be a number from 1"),
        ({"train_images": 10_001}, "to 10000"),
        ({"max_objects": 0}, "option 'max_objects'"),
        ({"train_image": 3}, "has no option 'train_image'.*did you mean 'train_images'"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        load(**options)


def test_names_sizes_and_paths_that_cannot_be():
    with pytest.raises(UserError, match=r"unknown detection data set 'shape' \(did you mean 'shapes'\?\)"):
        detection.load("shape", image_size=32)
    with pytest.raises(UserError, match="image_size of data set 'shapes' must be at least 18 pixels, but is 16"):
        detection.load("shapes", image_size=16)
    with pytest.raises(UserError, match="data set 'shapes' is drawn: leave dataset_path empty"):
        detection.load("shapes", image_size=32, path="somewhere")
    with pytest.raises(UserError, match="must not be negative, but is -1"):
        detection.load("shapes", image_size=32, seed=-1)
