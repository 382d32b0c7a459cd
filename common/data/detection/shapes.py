"""Drawn squares, discs, triangles and crosses on noisy backgrounds: detection without a download.

Image (seed, index) depends on these two numbers alone. Training images are 0, 1 ..., test images 10000, 10001 ....
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from common.data.cache import cached_arrays
from common.data.detection.dataset import DetectionData, DetectionSplit
from common.data.request import Request
from common.errors import UserError

CLASS_NAMES = ("square", "disc", "triangle", "cross")
FIRST_TEST_INDEX = 10_000
_VERSION = 1  # raise when the pictures change, so that cached ones are not mistaken for the new ones
_TRIES = 20
_SMALLEST_SIDE = 18  # the largest object must be larger than the smallest, and its parts whole pixels


def load(request: Request) -> DetectionData:
    """Options: train_images, test_images (numbers of each), max_objects (an image has 1 to so many).

    Raises:
      UserError: a `path`, unknown options, or numbers that cannot be.
    """
    if request.path is not None:
        raise UserError(f"data set 'shapes' is drawn: leave dataset_path empty instead of {request.path!r}.")
    options = request.read_options({"train_images": 512, "test_images": 256, "max_objects": 4})
    for option, value in options.items():
        if value < 1 or (option == "train_images" and value > FIRST_TEST_INDEX):
            raise UserError(
                f"option {option!r} of data set 'shapes' must be a number from 1 (train_images: to "
                f"{FIRST_TEST_INDEX}), but is {value}."
            )
    if request.image_size < _SMALLEST_SIDE:
        raise UserError(
            f"image_size of data set 'shapes' must be at least {_SMALLEST_SIDE} pixels, but is {request.image_size}."
        )
    if request.seed < 0:
        raise UserError(f"the seed of data set 'shapes' must not be negative, but is {request.seed}.")
    size, most = request.image_size, options["max_objects"]
    key = {"name": "shapes", "version": _VERSION, "seed": request.seed, "image_size": size, **options}
    arrays = cached_arrays(key, lambda: _draw_splits(request.seed, size, most, options))
    return DetectionData(
        "shapes",
        _split(arrays, "train", size),
        _split(arrays, "test", size),
        CLASS_NAMES,
        "public domain",
        "drawn by this program",
    )


def _split(arrays: dict[str, np.ndarray], split: str, size: int) -> DetectionSplit:
    images, boxes, labels = (arrays[f"{split}_{part}"] for part in ("images", "boxes", "labels"))
    sizes = np.full((len(images), 2), size, np.int32)
    return DetectionSplit(images, boxes, labels, np.zeros(labels.shape, bool), sizes)


def _draw_splits(seed: int, size: int, max_objects: int, options: dict[str, int]) -> dict[str, np.ndarray]:
    arrays = {}
    for split, first in (("train", 0), ("test", FIRST_TEST_INDEX)):
        drawn = [draw(seed, index, size, max_objects) for index in range(first, first + options[f"{split}_images"])]
        for name, parts in zip(("images", "boxes", "labels"), zip(*drawn, strict=True), strict=True):
            arrays[f"{split}_{name}"] = np.stack(parts)
    return arrays


def draw(
    seed: int, index: int, size: int = 64, max_objects: int = 4
) -> tuple[UInt8[np.ndarray, "S S 3"], Float32[np.ndarray, "G 4"], Int32[np.ndarray, " G"]]:
    """Image, boxes (ymin, xmin, ymax, xmax) in 0..1 and labels (-1: padding) of sample (seed, index).

    Objects do not touch one another: a place that is taken is drawn again, at most 20 times.
    """
    random = np.random.default_rng([seed, index])
    background = random.integers(0, 96, size=3)
    image = (background + random.integers(0, 16, size=(size, size, 3))).astype(np.uint8)
    boxes, labels = np.zeros((max_objects, 4), np.float32), np.full(max_objects, -1, np.int32)
    taken: list[tuple[int, int, int]] = []
    for _ in range(random.integers(1, max_objects + 1)):
        for _ in range(_TRIES):
            label = int(random.integers(0, len(CLASS_NAMES)))
            side = int(random.integers(size // 6, size // 3 + 1))
            y, x = (int(random.integers(0, size - side + 1)) for _ in range(2))
            colour = random.integers(128, 256, size=3)
            if any(y < b + s and b < y + side and x < a + s and a < x + side for b, a, s in taken):
                continue
            image[y : y + side, x : x + side][mask(label, side)] = colour
            boxes[len(taken)] = np.array([y, x, y + side, x + side]) / size
            labels[len(taken)] = label
            taken.append((y, x, side))
            break
    return image, boxes, labels


def mask(label: int, side: int) -> Bool[np.ndarray, "s s"]:
    """Pixels of a shape whose box has this side; all shapes touch all four edges of it."""
    row, column = np.indices((side, side))
    y, x = 2 * row + 1 - side, 2 * column + 1 - side
    shapes = {
        "square": np.ones((side, side), bool),
        "disc": y**2 + x**2 <= side**2,
        "triangle": np.abs(x) <= row + 1,
        "cross": (np.abs(y) <= side // 3) | (np.abs(x) <= side // 3),
    }
    return shapes[CLASS_NAMES[label]]
