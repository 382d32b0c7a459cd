"""The golden files that say what the official code's augmentation does."""

import functools
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[1] / "golden" / "vit_small"


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    """All arrays of a file, by name."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)
