"""The numbers to match."""

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[1] / "golden" / "multitask"


def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of one golden file."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)
