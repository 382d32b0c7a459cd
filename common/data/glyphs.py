"""Embedded data set of characters of twelve scripts, rendered from the fonts inside matplotlib.

A class is a character, an instance is a font style under a random affine map, colours, texture and noise. Few-shot
splits hold different scripts; classification splits hold different instances of the same characters. Each instance
has its own random generator, seeded by (seed, character, instance), so an image depends on nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from common.data.cache import cached_arrays
from common.data.dataset import Dataset, Split, make_dataset
from common.data.glyph_inventory import STYLES, Glyph, inventory, render_mask, versions
from common.data.options import nearest, read_options
from common.errors import UserError

_VERSION = 1  # raise when rendering changes, so that cached images are not mistaken for the new ones
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
_LIMITS = {
    **{
        "rotation": (0, 180),
        "scale_min": (0.2, 1.5),
        "scale_max": (0.2, 1.5),
        "shear": (0, 1),
        "translation": (0, 0.5),
    },
    **{"colour": (0, 1), "flip": (0, 1), "texture": (0, 1), "noise": (0, 1)},
    **{"instances_per_class": (20, 10_000), "max_classes": (0, 10_000), "num_classes": (2, 10_000)},
    **{"train_per_class": (1, 100_000), "validation_per_class": (0, 100_000), "test_per_class": (1, 100_000)},
}


def load(
    name: str,
    *,
    task: str,
    image_size: int,
    channels: int,
    path: str | None = None,
    seed: int = 0,
    options: Mapping[str, object] | None = None,
) -> Dataset:
    """Glyphs as few-shot data (train, validation, test: different scripts) or classification data.

    Options, both tasks: `difficulty` ('easy', 'medium', 'hard'; default 'medium') and any field of `Difficulty` to
    replace that strength. Few-shot: `instances_per_class` (24, at least 20), `max_classes` (0 = all; else at most so
    many per split, evenly chosen). Classification: `num_classes` (64), `train_per_class` (100), `validation_per_class`
    (0 = no such split), `test_per_class` (20).

    Raises:
      UserError: an option that is unknown or out of range, `image_size` outside 16..128, or a `path`.
    """
    if path is not None:
        raise UserError(f"data set 'glyphs' is rendered, not read: leave dataset_path empty instead of {path!r}.")
    if not 16 <= image_size <= 128:
        raise UserError(f"data set 'glyphs' is rendered with 16 to 128 pixels a side, but image_size is {image_size}.")
    chosen = _options(task, options)
    key = {
        "name": f"glyphs-{task}",
        "version": [_VERSION, *versions()],
        **{"image_size": image_size, "channels": channels, "seed": seed, "options": chosen},
    }
    arrays = cached_arrays(key, lambda: _render_splits(task, image_size, channels, seed, chosen))
    splits = {}
    for name in ("train", "validation", "test"):
        if f"{name}_images" in arrays:
            names = tuple(str(item) for item in arrays[f"{name}_names"])
            images = arrays[f"{name}_images"]
            labels = np.repeat(np.arange(len(names), dtype=np.int32), len(images) // len(names))
            splits[name] = Split(images, labels, names)
    return make_dataset(
        name,
        splits,
        licence="images: public domain; DejaVu fonts: Bitstream Vera licence, free to use and embed",
        source="rendered from the DejaVu fonts of the matplotlib package",
    )


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


def _options(task: str, options: Mapping[str, object] | None) -> dict:
    """Options with defaults filled in and checked, `difficulty` replaced by its strengths."""
    difficulty = (options or {}).get("difficulty", "medium")
    if not isinstance(difficulty, str) or difficulty not in DIFFICULTIES:
        raise UserError(
            f"option 'difficulty' of data set 'glyphs' must be one of {', '.join(DIFFICULTIES)}, but is "
            f"{difficulty!r}.{nearest(str(difficulty), DIFFICULTIES)}"
        )
    defaults: dict[str, object] = {"difficulty": "medium", **dataclasses.asdict(DIFFICULTIES[difficulty])}
    if task == "fewshot":
        defaults |= {"instances_per_class": 24, "max_classes": 0}
    else:
        defaults |= {"num_classes": 64, "train_per_class": 100, "validation_per_class": 0, "test_per_class": 20}
    chosen = read_options("glyphs", options, defaults)
    del chosen["difficulty"]  # its strengths say all: the same images under two names share a cache file
    for option, value in chosen.items():
        low, high = _LIMITS[option]
        if not low <= value <= high:
            raise UserError(f"option {option!r} of data set 'glyphs' must lie in {low}..{high}, but is {value}.")
    if chosen["scale_max"] < chosen["scale_min"]:
        raise UserError(
            f"option 'scale_max' of data set 'glyphs' must be at least scale_min = {chosen['scale_min']}, "
            f"but is {chosen['scale_max']}."
        )
    return chosen


def _render_splits(task: str, image_size: int, channels: int, seed: int, chosen: dict) -> dict[str, np.ndarray]:
    difficulty = Difficulty(**{field.name: chosen[field.name] for field in dataclasses.fields(Difficulty)})
    plan: dict[str, tuple[list[Glyph], range]] = {}
    if task == "fewshot":
        for split in ("train", "validation", "test"):
            glyphs = [glyph for glyph in inventory() if glyph.split == split]
            count = min(chosen["max_classes"] or len(glyphs), len(glyphs))
            plan[split] = (_evenly(glyphs, count), range(chosen["instances_per_class"]))
    else:
        everywhere = [glyph for glyph in inventory() if len(glyph.styles) == len(STYLES)]
        if chosen["num_classes"] > len(everywhere):
            raise UserError(
                f"option 'num_classes' of data set 'glyphs' must be at most {len(everywhere)}, the number of "
                f"characters in all styles, but is {chosen['num_classes']}."
            )
        start = 0
        for split in ("train", "validation", "test"):
            stop = start + chosen[f"{split}_per_class"]
            if stop > start:
                plan[split] = (_evenly(everywhere, chosen["num_classes"]), range(start, stop))
            start = stop
    arrays = {}
    for split, (glyphs, instances) in plan.items():
        images = np.empty((len(glyphs), len(instances), image_size, image_size, channels), np.uint8)
        for row, glyph in enumerate(glyphs):
            images[row] = render_instances(glyph, instances, image_size, channels, seed, difficulty)
        arrays[f"{split}_images"] = images.reshape(-1, *images.shape[2:])
        arrays[f"{split}_names"] = np.array([glyph.name for glyph in glyphs])
    return arrays


def _evenly(glyphs: list[Glyph], count: int) -> list[Glyph]:
    return [glyphs[index * len(glyphs) // count] for index in range(count)]


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
