"""From a picture file to the pixels that a network sees: short side to a fixed length, then the middle is cut out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps

from common.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Frame:
    """Short side to `resize` pixels (0 = as it is), then `crop` (height, width) from the middle.

    Rounding as in torchvision's Resize and CenterCrop.
    """

    resize: int
    crop: tuple[int, int]

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after resizing."""
        short, long = sorted((height, width))
        if not self.resize or short == self.resize:
            return height, width
        other = int(self.resize * long / short)
        return (self.resize, other) if height == short else (other, self.resize)

    def offset(self, height: int, width: int) -> tuple[int, int]:
        """(top, left) of the crop in a resized picture of this size."""
        return round((height - self.crop[0]) / 2), round((width - self.crop[1]) / 2)

    def image(self, picture: Image.Image, where: str) -> UInt8[np.ndarray, "h w 3"]:
        """RGB pixels; Lanczos filter. Raises UserError where the crop does not fit in; `where` names the picture."""
        return np.asarray(self._cut(as_rgb(picture), Image.Resampling.LANCZOS, where))

    def mask(self, picture: Image.Image, where: str) -> Bool[np.ndarray, "h w"]:
        """True where the mask is at least half white (or not 0, in a file of zeros and ones); nearest pixel.

        Raises UserError for a mask of other levels, such as numbers of classes: nothing of it would be marked.
        """
        wide = picture.mode.startswith("I")
        pixels = np.asarray(picture) if wide else np.asarray(as_rgb(picture).convert("L"))
        half = 127 if pixels.max() <= 255 else 32767
        marked = pixels > (half if pixels.max() > 1 else 0)
        if pixels.any() and not marked.any():
            raise UserError(f"mask {where} is nowhere white, its largest value is {pixels.max()}: use 0 and 255.")
        binary = Image.fromarray(marked.astype(np.uint8) * 255)
        return np.asarray(self._cut(binary, Image.Resampling.NEAREST, where)) > 0

    def _cut(self, picture: Image.Image, resampling: Image.Resampling, where: str) -> Image.Image:
        height, width = self.resized(picture.height, picture.width)
        if height < self.crop[0] or width < self.crop[1]:
            size = f"{picture.width} x {picture.height} pixels"
            after = f", {width} x {height} after resizing" if self.resize else ""
            raise UserError(
                f"picture {where} has {size}{after}, which is smaller than the crop of {self.crop[1]} x {self.crop[0]}"
                ": choose a smaller crop or a larger resize."
            )
        if (height, width) != (picture.height, picture.width):
            picture = picture.resize((width, height), resampling)
        top, left = self.offset(height, width)
        return picture.crop((left, top, left + self.crop[1], top + self.crop[0]))


def as_rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB: grey is repeated, 16 bits lose the lower eight, transparency is dropped."""
    if picture.mode.startswith("I"):
        # Pillow's own conversion to 8 bits clips at 255 instead of scaling.
        picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
    return picture.convert("RGB")


def open_picture(file: Path) -> Image.Image:
    """A decoded picture, turned as its camera says. Raises UserError if it cannot be read."""
    try:
        with Image.open(file) as picture:
            picture.load()
            turned = ImageOps.exif_transpose(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"picture {file} cannot be read ({error}): replace or remove it.") from error
    if turned.mode == "F":  # of unknown range: in 0..1 all would become black
        raise UserError(f"picture {file} holds floating-point numbers: save it with 8 or 16 bits.")
    return turned


def find_pictures(folder: Path) -> list[Path]:
    """Picture files of a folder, sorted by name."""
    return sorted(
        file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
