"""From a data set's name to its arrays. Sources are imported only when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from common.data.dataset import Dataset
from common.data.request import Request
from common.errors import UserError, did_you_mean

TASKS = ("fewshot", "classification")
_BOTH, _FEWSHOT, _CLASSIFICATION = TASKS, TASKS[:1], TASKS[1:]
# name -> (module of common.data, tasks it can do)
_SOURCES = {
    "glyphs": ("glyphs", _BOTH),
    "digits": ("digits", _CLASSIFICATION),
    "fashion_mnist": ("fashion_mnist", _CLASSIFICATION),
    "folder": ("folder", _BOTH),
    "cifar10": ("tfds_source", _CLASSIFICATION),
    "cifar100": ("tfds_source", _CLASSIFICATION),
    "svhn_cropped": ("tfds_source", _CLASSIFICATION),
    "stl10": ("tfds_source", _CLASSIFICATION),
    "tiny_imagenet": ("built_source", _CLASSIFICATION),
    "imagenet32": ("built_source", _CLASSIFICATION),
    "omniglot": ("tfds_source", _FEWSHOT),
    "mini_imagenet": ("built_source", _FEWSHOT),
    "tiered_imagenet": ("built_source", _FEWSHOT),
    "cub_200_2011": ("built_source", _FEWSHOT),
    "cifar_fs": ("built_source", _FEWSHOT),
}


def names(task: str | None = None) -> tuple[str, ...]:
    """Names that `load` knows, of all tasks or of one."""
    return tuple(name for name, (_, tasks) in _SOURCES.items() if task is None or task in tasks)


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
    """Data set `name` in memory.

    Args:
      name: one of `names()`.
      task: 'fewshot': train, validation and test hold different classes, and the images of a class stand together, in
        label order; 'classification': the splits share their classes, 'validation' may be absent.
      image_size: side of the square images in pixels; others are resized (bicubic, not cropped).
      channels: 1 (grey) or 3 (RGB).
      path: folder of the data, for sources that are read from one.
      seed: of rendering or of a random split; sources with a fixed split ignore it.
      options: further settings of the source; each source documents its own.

    Raises:
      UserError: unknown name, task or option, a data set that cannot do the task, missing or damaged files.
    """
    if name not in _SOURCES:
        raise UserError(f"unknown data set {name!r}{did_you_mean(name, names())}; known are: {', '.join(names())}.")
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}{did_you_mean(task, TASKS)}; known are: {', '.join(TASKS)}.")
    module, tasks = _SOURCES[name]
    if task not in tasks:
        raise UserError(
            f"data set {name!r} cannot be used for {task}, only for {', '.join(tasks)}; "
            f"data sets for {task} are: {', '.join(names(task))}."
        )
    if channels not in (1, 3):
        raise UserError(f"channels must be 1 (grey) or 3 (RGB), but is {channels}.")
    if image_size < 8:
        raise UserError(f"image_size must be at least 8 pixels, but is {image_size}.")
    if seed < 0:
        raise UserError(f"the seed of data set {name!r} must not be negative, but is {seed}.")
    source = importlib.import_module(f"common.data.{module}")
    return source.load(Request(name, task, image_size, channels, path or None, seed, options or {}))
