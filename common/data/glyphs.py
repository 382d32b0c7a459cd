"""Embedded data set of characters of twelve scripts, rendered from the fonts inside matplotlib.

A class is a character, an instance is a font style under a random affine map, colours, texture and noise. Few-shot
splits hold different scripts; classification splits hold different instances of the same characters. Each instance
has its own random generator, seeded by (seed, character, instance), so an image depends on nothing else.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from common.data.cache import cached_arrays
from common.data.dataset import Dataset, Split, make_dataset
from common.data.glyph_inventory import STYLES, Glyph, inventory, versions
from common.data.glyph_rendering import DIFFICULTIES, Difficulty, render_instances
from common.data.request import Request
from common.errors import UserError, did_you_mean

_VERSION = 1  # raise when rendering changes, so that cached images are not mistaken for the new ones
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


def load(request: Request) -> Dataset:
    """Glyphs as few-shot data (train, validation, test: different scripts) or classification data.

    Options, both tasks: `difficulty` ('easy', 'medium', 'hard'; default 'medium') and any field of `Difficulty` to
    replace that strength. Few-shot: `instances_per_class` (24, at least 20), `max_classes` (0 = all; else at most so
    many per split, evenly chosen). Classification: `num_classes` (64), `train_per_class` (100), `validation_per_class`
    (0 = no such split), `test_per_class` (20).

    Raises:
      UserError: an option that is unknown or out of range, `image_size` outside 16..128, or a `path`.
    """
    if request.path is not None:
        raise UserError(
            f"data set 'glyphs' is rendered, not read: leave dataset_path empty instead of {request.path!r}."
        )
    if not 16 <= request.image_size <= 128:
        raise UserError(
            f"data set 'glyphs' is rendered with 16 to 128 pixels a side, but image_size is {request.image_size}."
        )
    chosen = _options(request)
    key = {
        "name": f"glyphs-{request.task}",
        "version": [_VERSION, *versions()],
        **{"image_size": request.image_size, "channels": request.channels, "seed": request.seed, "options": chosen},
    }
    arrays = cached_arrays(key, lambda: _render_splits(request, chosen))
    splits = {}
    for name in ("train", "validation", "test"):
        if f"{name}_images" in arrays:
            names = tuple(str(item) for item in arrays[f"{name}_names"])
            images = arrays[f"{name}_images"]
            labels = np.repeat(np.arange(len(names), dtype=np.int32), len(images) // len(names))
            splits[name] = Split(images, labels, names)
    return make_dataset(
        request.name,
        splits,
        licence="images: public domain; DejaVu fonts: Bitstream Vera licence, free to use and embed",
        source="rendered from the DejaVu fonts of the matplotlib package",
    )


def _options(request: Request) -> dict[str, Any]:
    """Options with defaults filled in and checked, `difficulty` replaced by its strengths."""
    difficulty = request.options.get("difficulty", "medium")
    if not isinstance(difficulty, str) or difficulty not in DIFFICULTIES:
        raise UserError(
            f"option 'difficulty' of data set 'glyphs' must be one of {', '.join(DIFFICULTIES)}, but is "
            f"{difficulty!r}{did_you_mean(str(difficulty), DIFFICULTIES)}."
        )
    defaults: dict[str, object] = {"difficulty": "medium", **dataclasses.asdict(DIFFICULTIES[difficulty])}
    if request.task == "fewshot":
        defaults |= {"instances_per_class": 24, "max_classes": 0}
    else:
        defaults |= {"num_classes": 64, "train_per_class": 100, "validation_per_class": 0, "test_per_class": 20}
    chosen = request.read_options(defaults)
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


def _render_splits(request: Request, chosen: dict[str, Any]) -> dict[str, np.ndarray]:
    difficulty = Difficulty(**{field.name: chosen[field.name] for field in dataclasses.fields(Difficulty)})
    plan: dict[str, tuple[list[Glyph], range]] = {}
    if request.task == "fewshot":
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
        size, channels = request.image_size, request.channels
        images = np.empty((len(glyphs), len(instances), size, size, channels), np.uint8)
        for row, glyph in enumerate(glyphs):
            images[row] = render_instances(glyph, instances, size, channels, request.seed, difficulty)
        arrays[f"{split}_images"] = images.reshape(-1, *images.shape[2:])
        arrays[f"{split}_names"] = np.array([glyph.name for glyph in glyphs])
    return arrays


def _evenly(glyphs: list[Glyph], count: int) -> list[Glyph]:
    return [glyphs[index * len(glyphs) // count] for index in range(count)]
