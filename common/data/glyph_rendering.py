"""How one character becomes many images: a random affine map, colours, texture and noise of a chosen strength."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from common.data.glyph_inventory import Glyph, render_mask

_INK_SHARE = 0.65  # longer side of an unscaled character, as a share of the image side
_TEXTURE_GRID = 6
_COLOUR_SPAN = 0.35  # < 0.5, so that ink and ground differ in each channel however the colours fall


@dataclass(frozen=True)
class Difficulty:
    """How far instances of one class differ. All draws are uniform but for the noise."""

    rotation: float  # degrees, at most this to either side
    scale_min: float  # size relative to 65 % of the image side
    scale_max: float
    shear: float  # horizontal, at most this to either side
    translation: float  # share of the image side, cut so that no character leaves the image
    colour: float  # 0: white on black; 1: any colours that differ by at least 0.3 of 1 per channel
    flip: float  # probability of dark on light
    texture: float  # amplitude of a smooth random pattern, of 1
    noise: float  # standard deviation of pixel noise, of 1


# The one table to calibrate. 'easy' is the near end (a few hundred meta-steps), 'hard' the far end.
DIFFICULTIES = {
    "easy": Difficulty(10.0, 0.85, 1.10, 0.10, 0.08, colour=0.0, flip=0.0, texture=0.00, noise=0.00),
    "medium": Difficulty(15.0, 0.75, 1.10, 0.15, 0.10, colour=0.5, flip=0.0, texture=0.15, noise=0.05),
    "hard": Difficulty(30.0, 0.65, 1.10, 0.30, 0.15, colour=1.0, flip=0.5, texture=0.25, noise=0.08),
}


def render_instances(
    glyph: Glyph, instances: Sequence[int], image_size: int, channels: int, seed: int, difficulty: Difficulty
) -> UInt8[np.ndarray, "n s s c"]:
    """Images of the given instance numbers of one character; the style goes round with the number."""
    ink_size = round(_INK_SHARE * image_size)
    inks = [render_mask(glyph.codepoint, style, ink_size) for style in glyph.styles]
    coverage = np.empty((len(instances), image_size, image_size, 1), np.float32)
    ground = np.empty((len(instances), image_size, image_size, channels), np.float32)
    colours = np.empty((2, len(instances), 1, 1, channels), np.float32)
    for row, instance in enumerate(instances):
        random = np.random.default_rng([seed, glyph.codepoint, instance])
        ink = inks[instance % len(inks)]
        coverage[row, ..., 0] = _warp(ink, image_size, random.random(5), difficulty)
        colours[:, row, 0, 0] = _colours(random, channels, difficulty)
        ground[row] = _texture(random, image_size, channels, difficulty)
    images = colours[0] + coverage * (colours[1] - colours[0]) + ground
    return np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)


def _warp(
    ink: Image.Image, image_size: int, draws: np.ndarray, difficulty: Difficulty
) -> Float32[np.ndarray, "size size"]:
    """Coverage of `ink` under the affine map that five uniform draws choose, shrunk if it would leave the image."""
    angle = np.deg2rad(difficulty.rotation) * (2 * draws[0] - 1)
    scale = difficulty.scale_min + (difficulty.scale_max - difficulty.scale_min) * draws[1]
    shear = np.array([[1.0, difficulty.shear * (2 * draws[2] - 1)], [0.0, 1.0]])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = scale * turn @ shear
    half = np.abs(forward) @ (np.array(ink.size) / 2)
    room = image_size / 2 - 1
    if half.max() > room:
        forward, half = forward * (room / half.max()), half * (room / half.max())
    shift = (2 * draws[3:5] - 1) * np.minimum(difficulty.translation * image_size, room - half)
    # Pillow asks for the map from output to input; a margin lets the ink fade out instead of being cut at its box.
    margin = 2
    padded = Image.new("L", (ink.width + 2 * margin, ink.height + 2 * margin))
    padded.paste(ink, (margin, margin))
    inverse = np.linalg.inv(forward)
    offset = np.array(padded.size) / 2 - inverse @ (image_size / 2 + shift)
    matrix = (*inverse[0], offset[0], *inverse[1], offset[1])
    size = (image_size, image_size)
    warped = padded.transform(size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)
    return np.asarray(warped, np.float32) / np.float32(255.0)


def _colours(random: np.random.Generator, channels: int, difficulty: Difficulty) -> Float32[np.ndarray, "2 c"]:
    """Colours of ground and ink in [0, 1]."""
    draws = _COLOUR_SPAN * difficulty.colour * random.random((2, channels))
    colours = np.stack([draws[0], 1.0 - draws[1]])
    dark_on_light = random.random() < difficulty.flip
    return (colours[::-1] if dark_on_light else colours).astype(np.float32)


def _texture(
    random: np.random.Generator, image_size: int, channels: int, difficulty: Difficulty
) -> Float32[np.ndarray, "s s c"]:
    """What is added over ink and ground: a smooth random pattern and pixel noise."""
    added = np.zeros((image_size, image_size, channels), np.float32)
    if difficulty.texture:
        grid = 2 * random.random((_TEXTURE_GRID, _TEXTURE_GRID, channels), np.float32) - 1
        # Rows of `spread` hold linear interpolation weights from the grid to the pixels.
        position = np.linspace(0, _TEXTURE_GRID - 1, image_size, dtype=np.float32)
        spread = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(_TEXTURE_GRID, dtype=np.float32)))
        added += np.float32(difficulty.texture) * np.einsum("yi,ijc,xj->yxc", spread, grid, spread, optimize=True)
    if difficulty.noise:
        added += np.float32(difficulty.noise) * random.standard_normal(added.shape, np.float32)
    return added
