"""The 1797 handwritten digits (8 x 8) that scikit-learn carries: real data without a download."""

from __future__ import annotations

import numpy as np

from common.data.dataset import Dataset, Split, make_dataset
from common.data.images import fit_arrays
from common.data.request import Request
from common.errors import UserError

_TEST_SHARE = 5  # every class gives the last fifth of its images to the test split


def load(request: Request) -> Dataset:
    """Digits for classification: of each class the last fifth is 'test', the rest 'train'; the seed changes nothing.

    Raises:
      UserError: any option, or a `path`.
    """
    if request.path is not None:
        raise UserError(
            f"data set {request.name!r} is part of scikit-learn: leave dataset_path empty instead of {request.path!r}."
        )
    request.read_options({})
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    levels = np.rint(np.asarray(pixels, np.float64).reshape(-1, 8, 8) * (255.0 / 16.0)).astype(np.uint8)
    images = fit_arrays(levels, request.image_size, request.channels)
    labels = np.asarray(target, np.int32)
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        is_test[members[-(len(members) // _TEST_SHARE) :]] = True
    class_names = tuple(str(label) for label in range(10))
    splits = {
        "train": Split(images[~is_test], labels[~is_test], class_names),
        "test": Split(images[is_test], labels[is_test], class_names),
    }
    source = "scikit-learn load_digits: test part of UCI 'Optical Recognition of Handwritten Digits' (Alpaydin, Kaynak)"
    return make_dataset(request.name, splits, licence="CC BY 4.0", source=source)
