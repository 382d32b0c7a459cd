"""Arrays that published copies of data sets are pickled in, read without running what a pickle may ask for."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from common import npz
from common.errors import UserError

# All that NumPy arrays, their scalars and Python's containers need. NumPy 1 and Python 2 had other names for some.
_ALLOWED = {
    *(("numpy", name) for name in ("ndarray", "dtype")),
    *(("numpy._core.multiarray", name) for name in ("_reconstruct", "scalar")),
    ("numpy._core.numeric", "_frombuffer"),
    *(("builtins", name) for name in ("set", "bytearray")),
}


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    """What old protocols write bytes as."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text encoded as {encoding!r}")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Knows NumPy arrays and builtin containers, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _encode_latin1
        module = module.replace("numpy.core.", "numpy._core.").replace("__builtin__", "builtins")
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return super().find_class(module, name)


def read_pickle(file: Path) -> Any:
    """The arrays and containers of a pickle; strings of Python 2 as Latin-1, as NumPy wants them.

    Raises:
      UserError: damaged, or it holds anything but NumPy arrays, numbers, strings and builtin containers.
    """
    try:
        with file.open("rb") as stream:
            return _ArrayUnpickler(stream, encoding="latin1").load()
    except FileNotFoundError as error:
        raise UserError(f"file {file} is missing.") from error
    # What a damaged pickle raises depends on where the damage is.
    except (pickle.UnpicklingError, OSError, EOFError, ArithmeticError, LookupError, ValueError, TypeError,
            AttributeError, ImportError, MemoryError) as error:  # fmt: skip
        reason = " ".join(str(error).split())  # names in a damaged pickle may hold anything
        raise UserError(f"file {file} cannot be read as pickled arrays ({reason}): copy it anew.") from error


def read_npz(file: Path, *names: str) -> np.ndarray:
    """The first of these arrays that an .npz file holds. Raises UserError: damaged, or none of them."""
    try:
        stored = npz.read(file)
    except (OSError, ValueError) as error:
        raise UserError(f"file {file} cannot be read as .npz arrays ({error}): copy it anew.") from error
    for name in names:
        if name in stored:
            return stored[name]
    held = ", ".join(stored) or "none"
    raise UserError(f"file {file} must hold an array called {' or '.join(names)}, but holds {held}.")


def check_images(file: Path, images: Any) -> UInt8[np.ndarray, "n h w 3"]:
    """`images` if they are uint8 [n, h, w, 3]; raises UserError."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        kind = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
        raise UserError(f"the images in {file} must be an array of uint8 [n, height, width, 3], but are {kind}.")
    return images


def png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """The image as the bytes of a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()
