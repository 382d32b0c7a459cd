"""Which training images prepare the network (D_sub) and which judge the sub-networks (D_val).

As the official code draws them: by class and place, shuffled once with NumPy's legacy generator and seed 1.

Both are parts of the training set, and fine-tuning uses all of it: no image is held out (spec section 11, 10).
"""

import numpy as np
from jaxtyping import Int

_SEED = 1


def preparation_images(labels: Int[np.ndarray, " n"], num_classes: int, per_class: int) -> Int[np.ndarray, " m"]:
    """The first `per_class` images of each class, or as many as there are."""
    return _stacked([np.flatnonzero(labels == label)[:per_class] for label in range(num_classes)])


def validation_images(labels: Int[np.ndarray, " n"], num_classes: int, per_class: int) -> Int[np.ndarray, " m"]:
    """The last `per_class` images of each class, last one first."""
    return _stacked([np.flatnonzero(labels == label)[::-1][:per_class] for label in range(num_classes)])


def _stacked(by_class: list[Int[np.ndarray, " k"]]) -> Int[np.ndarray, " m"]:
    indices = np.concatenate(by_class)
    np.random.RandomState(_SEED).shuffle(indices)
    return indices
