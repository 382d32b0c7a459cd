import numpy as np

from common.data import load


def test_digits_are_split_by_class():
    data = load("digits", task="classification", image_size=16, channels=3)
    train, test = data.splits["train"], data.splits["test"]
    assert train.images.shape[1:] == (16, 16, 3)
    assert len(train.images) + len(test.images) == 1797
    share = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))
    assert np.all((share > 0.19) & (share <= 0.2))
    assert train.class_names == tuple("0123456789")


def test_values_reach_white_without_resizing():
    data = load("digits", task="classification", image_size=8, channels=1)
    assert data.splits["train"].images.max() == 255
    from sklearn.datasets import load_digits

    np.testing.assert_array_equal(
        data.splits["train"].images[0, ..., 0], np.rint(load_digits().images[0] * 255 / 16).astype(np.uint8)
    )
