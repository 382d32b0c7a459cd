"""Small trees of pictures, as MVTec AD has them and as users do."""

from pathlib import Path

import numpy as np
from PIL import Image


def write(file: Path, value: int = 100, size: tuple[int, int] = (40, 36), mode: str = "RGB") -> Path:
    """A picture (width, height) of one colour with a brighter corner."""
    pixels = np.full((size[1], size[0], 3), value, np.uint8)
    pixels[: size[1] // 4, : size[0] // 4] = 255
    picture = Image.fromarray(pixels)
    if mode == "I;16":
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    file.parent.mkdir(parents=True, exist_ok=True)
    (picture if mode in ("RGB", "I;16") else picture.convert(mode)).save(file)
    return file


def write_mask(file: Path, size: tuple[int, int] = (40, 36), level: int = 255) -> Path:
    """A mask whose middle is `level`."""
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[size[1] // 3 : 2 * size[1] // 3, size[0] // 3 : 2 * size[0] // 3] = level
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file


def mvtec_tree(root: Path, train: int = 6) -> Path:
    """train/good, test/{good,crack,dent}, ground_truth."""
    for index in range(train):
        write(root / "train" / "good" / f"{index:03d}.png", 100 + index)
    for index in range(2):
        write(root / "test" / "good" / f"{index:03d}.png", 110 + index)
        for defect in ("crack", "dent"):
            write(root / "test" / defect / f"{index:03d}.png", 50 + index)
            write_mask(root / "ground_truth" / defect / f"{index:03d}_mask.png")
    return root
