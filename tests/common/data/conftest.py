"""Data tests share one cache folder, away from the user's own, and make small pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache_in_tests(shared_cache, monkeypatch):
    monkeypatch.setenv("LEANVISION_CACHE", str(shared_cache))
    return shared_cache


def write_picture(file: Path, value: int = 0, size: tuple[int, int] = (12, 10)) -> None:
    """A PNG of one colour."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(file)


def write_class_folders(root: Path, classes: list[str], images_per_class: int, first: int = 0) -> None:
    """Class folders of one-coloured pictures; the colour, from `first` on, tells class and picture."""
    for row, label in enumerate(classes):
        for index in range(images_per_class):
            write_picture(root / label / f"{index:03d}.png", first + 10 * row + index)
