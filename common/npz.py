"""Reading NumPy's .npz and .npy files that may be damaged; nothing in them is executed."""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# What NumPy and zipfile raise beside ValueError and OSError depends on where the damage is.
_DAMAGE = (
    *(EOFError, IndexError, KeyError, MemoryError, RuntimeError, SyntaxError, TypeError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


def read(file: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file by name.

    Raises:
      OSError: a file that is not there or cannot be read.
      ValueError: any other content than arrays of numbers, undamaged.
    """
    # Opened here, because np.load leaves a damaged file open.
    with _told_as_value_error(), file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def read_array(file: Path) -> np.ndarray:
    """The array of an .npy file. Raises as `read`."""
    with _told_as_value_error(), file.open("rb") as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


@contextmanager
def _told_as_value_error() -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
