"""AutoAugment's operations image by image with Pillow, as in the official code: to compare with, and for tests."""

import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from vit_small.augmentation.policies import INDEX, MAGNITUDES, POLICIES

FILL = 128
_ENHANCERS = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
    "brightness": ImageEnhance.Brightness,
}


def operate(image: Image.Image, name: str, level: int, sign: int) -> Image.Image:
    """The image after one operation."""
    magnitude = float(MAGNITUDES[INDEX[name], level])
    fill = (FILL,) * len(image.getbands())
    if name in _ENHANCERS:
        return _ENHANCERS[name](image).enhance(1 + magnitude * sign)
    if name == "rotate":
        turned = image.convert("RGBA").rotate(magnitude * sign)
        return Image.composite(turned, Image.new("RGBA", turned.size, (FILL,) * 4), turned).convert(image.mode)
    if name.startswith(("shear", "translate")):
        along_rows = name.endswith("X")
        move = magnitude * sign
        if name.startswith("translate"):
            move *= image.size[0] if along_rows else image.size[1]
            matrix = (1, 0, move, 0, 1, 0) if along_rows else (1, 0, 0, 0, 1, move)
            how = Image.Resampling.NEAREST
        else:
            matrix = (1, move, 0, 0, 1, 0) if along_rows else (1, 0, 0, move, 1, 0)
            how = Image.Resampling.BICUBIC
        return image.transform(image.size, Image.Transform.AFFINE, matrix, how, fillcolor=fill)
    if name == "posterize":
        return ImageOps.posterize(image, int(magnitude))
    if name == "solarize":
        return ImageOps.solarize(image, math.ceil(magnitude))
    plain = {"autocontrast": ImageOps.autocontrast, "equalize": ImageOps.equalize, "invert": ImageOps.invert}
    return plain[name](image)


def augment_image(pixels: np.ndarray, random: np.random.Generator, policy: str, padding: int = 4) -> np.ndarray:
    """Flip, crop and policy on one RGB image uint8 [h, w, 3]; normalising and erasing are left out."""
    image = Image.fromarray(pixels)
    if random.random() < 0.5:
        image = ImageOps.mirror(image)
    left, top = random.integers(0, 2 * padding + 1, 2)
    width, height = image.size
    image = ImageOps.expand(image, padding).crop((left, top, left + width, top + height))
    sub_policy = POLICIES[policy][random.integers(0, len(POLICIES[policy]))]
    for probability, name, level in (sub_policy[:3], sub_policy[3:]):
        if random.random() < probability:
            image = operate(image, name, level, int(random.choice((-1, 1))) if name != "rotate" else 1)
    return np.asarray(image)
