"""Embedded: photographs of brick, gravel and grass inside scikit-image, with made-up defects and their exact masks.

Good crops to train on come from the left half of a photograph, all test crops from the right half. Four kinds of
defects in equal numbers: a patch of another texture, a stain, a scratch, a blurred spot. Everything depends on the
category, the seed and the place of an image in its list, on nothing else.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from scipy import ndimage

from common.data.anomaly.dataset import AnomalyData, check_category
from common.data.anomaly.frame import Frame
from common.data.request import Request
from common.errors import UserError

CATEGORIES = ("brick", "gravel", "grass")
DEFECTS = ("foreign_texture", "stain", "scratch", "blur")
HALF = 256  # columns of a photograph before the test half; it has 512 x 512 pixels
BLOB_SHARE, BLOB_SIGMA = 0.05, 10.0
SCRATCH_LENGTH, SCRATCH_WIDTH, SCRATCH_LEVELS = 60, 3, 80
_OPTIONS = {"image_size": 128, "train_images": 32, "good_test_images": 12, "images_per_defect": 5}

Grey = Float64[np.ndarray, "_ _"]


def load(category: str, frame: Frame, request: Request) -> AnomalyData:
    """Crops of one photograph.

    Options: `image_size` (128, side of the crops before the frame), `train_images` (32), `good_test_images` (12),
    `images_per_defect` (5; 20 defective images).

    Raises:
      UserError: unknown category or option, a `path`, a crop that does not fit into half a photograph.
    """
    chosen = _options(category, request)
    size = chosen["image_size"]
    photograph = _photograph(category)
    other = _photograph(CATEGORIES[(CATEGORIES.index(category) + 1) % len(CATEGORIES)])

    def random(*name: object) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(repr((category, request.seed, *name)).encode()))

    train = [_crop(photograph, size, 0, random("train", index)) for index in range(chosen["train_images"])]
    good = [_crop(photograph, size, HALF, random("good", index)) for index in range(chosen["good_test_images"])]
    pairs, defects = [(image, np.zeros((size, size), bool)) for image in good], ["good"] * len(good)
    for defect in DEFECTS:
        for index in range(chosen["images_per_defect"]):
            generator = random(defect, index)
            image = _crop(photograph, size, HALF, generator)
            pairs.append(_damage(image, defect, other, generator))
            defects.append(defect)
    numbers = [defects[:place].count(defect) for place, defect in enumerate(defects)]
    return AnomalyData(
        name=f"textures/{category}",
        train=_framed(train, frame),
        test=_framed([image for image, _ in pairs], frame),
        labels=np.array([defect != "good" for defect in defects], np.int32),
        masks=np.stack([_framed_mask(mask, frame) for _, mask in pairs]),
        defects=tuple(defects),
        files=tuple(f"{defect}/{number:03d}.png" for defect, number in zip(defects, numbers, strict=True)),
        licence="CC0",
        source=f"scikit-image's photograph {category!r}; the defects are made up",
    )


def count_training_images(category: str, request: Request) -> int:
    """The option `train_images`."""
    return _options(category, request)["train_images"]


def _options(category: str, request: Request) -> dict[str, Any]:
    if request.path is not None:
        raise UserError(
            f"data set 'textures' is part of scikit-image: leave dataset_path empty instead of {request.path!r}."
        )
    check_category(category, CATEGORIES, request.name)
    chosen = request.read_options(_OPTIONS)
    for option, value in chosen.items():
        low, high = (SCRATCH_LENGTH + 4, HALF) if option == "image_size" else (1, 10_000)
        if not low <= value <= high:
            raise UserError(f"option {option!r} of data set 'textures' must lie in {low}..{high}, but is {value}.")
    return chosen


def _photograph(category: str) -> Grey:
    from skimage import data

    return getattr(data, category)().astype(np.float64)


def _crop(photograph: Grey, size: int, first_column: int, random: np.random.Generator) -> Grey:
    top = random.integers(0, photograph.shape[0] - size + 1)
    left = first_column + random.integers(0, HALF - size + 1)
    return photograph[top : top + size, left : left + size].copy()


def _damage(image: Grey, defect: str, other: Grey, random: np.random.Generator) -> tuple[Grey, Bool[np.ndarray, "h w"]]:
    """The image with a defect, and where it was edited."""
    size = len(image)
    if defect == "scratch":
        mask = scratch(size, random)
        return np.where(mask, image + SCRATCH_LEVELS, image), mask
    mask = blob(size, random)
    if defect == "foreign_texture":
        changed = _crop(other, size, HALF, random)
    elif defect == "stain":
        changed = image * 0.6 - 10 if random.random() < 0.5 else image * 0.7 + 90
    else:
        changed = ndimage.gaussian_filter(image, 4)
    return np.where(mask, changed, image), mask


def blob(size: int, random: np.random.Generator) -> Bool[np.ndarray, "size size"]:
    """A smooth spot of 5 % of the area: the highest part of smoothed noise with a bump at a random place."""
    noise = ndimage.gaussian_filter(random.standard_normal((size, size)), BLOB_SIGMA)
    centre = random.uniform(0.2 * size, 0.8 * size, 2)
    rows, columns = np.mgrid[:size, :size]
    distance = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2
    height = noise / noise.std() + 4 * np.exp(-distance / (2 * (0.15 * size) ** 2))
    return height > np.quantile(height, 1 - BLOB_SHARE)


def scratch(size: int, random: np.random.Generator) -> Bool[np.ndarray, "size size"]:
    """A straight line of 60 x 3 pixels in a random direction, all of it inside the image."""
    angle = random.uniform(0, np.pi)
    direction = np.array([np.sin(angle), np.cos(angle)])
    reach = np.abs(direction) * SCRATCH_LENGTH / 2 + 2
    centre = random.uniform(reach, size - reach)
    rows, columns = np.mgrid[:size, :size] - centre[:, None, None]
    along = rows * direction[0] + columns * direction[1]
    across = rows * direction[1] - columns * direction[0]
    return (np.abs(along) <= SCRATCH_LENGTH / 2) & (np.abs(across) <= SCRATCH_WIDTH / 2)


def _framed(images: list[Grey], frame: Frame) -> UInt8[np.ndarray, "n H W 3"]:
    from PIL import Image

    pixels = [np.clip(np.rint(image), 0, 255).astype(np.uint8) for image in images]
    return np.stack([frame.image(Image.fromarray(image), "of the textures") for image in pixels])


def _framed_mask(mask: Bool[np.ndarray, "h w"], frame: Frame) -> Bool[np.ndarray, "H W"]:
    from PIL import Image

    return frame.mask(Image.fromarray(mask.astype(np.uint8) * 255), "of the textures")
