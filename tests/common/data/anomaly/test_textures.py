"""The embedded textures: halves of a photograph that do not overlap, and masks that say exactly what was edited."""

import numpy as np
import pytest
from skimage import data as photographs

from common.data import anomaly
from common.data.anomaly import Frame, textures
from common.data.request import Request
from common.errors import UserError

FRAME = Frame(0, (64, 64))
SMALL = {"image_size": 64, "train_images": 5, "good_test_images": 3, "images_per_defect": 2}


def load(category="brick", seed=0, **options):
    return anomaly.load("textures", category, FRAME, seed=seed, options=SMALL | options)


def places(crop, photograph):
    """Where a grey crop stands in the photograph."""
    windows = np.lib.stride_tricks.sliding_window_view(photograph, crop.shape)
    first = np.argwhere((windows[:, :, 0, 0] == crop[0, 0]) & (windows[:, :, -1, -1] == crop[-1, -1]))
    return [tuple(place) for place in first if (windows[tuple(place)] == crop).all()]


def test_train_is_from_the_left_half_and_test_from_the_right():
    dataset, photograph = load(), photographs.brick()
    for crop in dataset.train[..., 0]:
        assert any(left + 64 <= 256 for _, left in places(crop, photograph))
    for crop in dataset.test[:3, ..., 0]:
        assert any(left >= 256 for _, left in places(crop, photograph))


@pytest.mark.parametrize("category", textures.CATEGORIES)
def test_masks_are_where_the_defects_are(category):
    dataset = load(category)
    assert dataset.defects == ("good",) * 3 + tuple(name for name in textures.DEFECTS for _ in range(2))
    assert dataset.masks is not None
    assert not dataset.masks[:3].any()
    assert (dataset.test[..., :1] == dataset.test).all()  # grey
    for kind, mask in zip(dataset.defects[3:], dataset.masks[3:], strict=True):
        if kind == "scratch":
            assert 150 <= mask.sum() <= 215
        else:
            np.testing.assert_allclose(mask.mean(), textures.BLOB_SHARE, atol=1 / 64**2)


def test_nothing_outside_the_mask_is_changed(monkeypatch):
    damaged = load().test
    monkeypatch.setattr(textures, "_damage", lambda image, defect, other, random: (image, np.ones(image.shape, bool)))
    plain, masks = load().test, load().masks
    monkeypatch.undo()
    masks = load().masks
    changed = (damaged != plain)[..., 0]
    assert not changed[~masks].any()
    assert changed[3:].any(axis=(1, 2)).all()
    assert changed[3:][masks[3:]].mean() > 0.6


def test_the_seed_and_nothing_else_decides():
    one, again, other = load(), load(), load(seed=1)
    np.testing.assert_array_equal(one.test, again.test)
    assert (one.train != other.train).any()
    longer = load(train_images=7)
    np.testing.assert_array_equal(longer.train[:5], one.train)
    np.testing.assert_array_equal(longer.test, one.test)
    assert anomaly.count_training_images("textures", "brick", options=SMALL) == 5


def test_mistakes():
    for message, arguments in (
        (r"has no category 'bricks' \(did you mean 'brick'\?\)", {"category": "bricks"}),
        ("'image_size' of data set 'textures' must lie in 64..256, but is 300", {"image_size": 300}),
        ("has no option 'train_image'", {"train_image": 3}),
    ):
        with pytest.raises(UserError, match=message):
            load(**arguments)
    with pytest.raises(UserError, match="leave dataset_path empty"):
        textures.load("brick", FRAME, Request("textures", "anomaly", 0, 3, "/somewhere"))
