"""Reading .npz files that may be damaged."""

import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

# What NumPy and zipfile raise beside ValueError and OSError depends on where the damage is.
_DAMAGE = (
    *(EOFError, IndexError, KeyError, MemoryError, RuntimeError, SyntaxError, TypeError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


def read(file: Path) -> dict[str, np.ndarray]:
    """All arrays of a file by name; nothing in it is executed.

    Raises:
      OSError: a file that is not there or cannot be read.
      ValueError: any other content than arrays of numbers, undamaged.
    """
    try:
        # Opened here, because np.load leaves a damaged file open.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except _DAMAGE as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
