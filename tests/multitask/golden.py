"""The golden files of the family."""

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[1] / "golden" / "multitask"


def load(name):
    """All arrays of a file."""
    with np.load(FOLDER / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}
