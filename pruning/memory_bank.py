"""The memory bank: logits of the teachers for every training image, computed once and kept in a memory-mapped file.

A teacher is a masked form of the unpruned network with the statistics of each batch, in the data set's order, without
augmentation. bank[i, :, k] are the logits of teacher k for image i. Source: official code (spec section 6).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from common.errors import UserError

DTYPES = ("float32", "float16")
FILE = "bank.npy"
Logits = Callable[[Any, Any], Float[Any, "b classes"]]  # (masks, images of a batch)


def build(
    path: Path,
    logits: Logits,
    teachers: Sequence[Mapping[str, Any]],
    batches: Callable[[], Iterator[Any]],
    shape: tuple[int, int],
    dtype: str,
) -> Float[np.ndarray, "n classes k"]:
    """Write the bank of `teachers`, given as masks, and return it, memory-mapped.

    Args:
      batches: a fresh pass over the images, in the data set's order.
      shape: (images, classes).
      dtype: "float16" halves the file.
    """
    scratch = path.with_suffix(".part")
    bank = np.lib.format.open_memmap(scratch, mode="w+", dtype=dtype, shape=(*shape, len(teachers)))
    for k, masks in enumerate(teachers):
        first = 0
        for images in batches():
            found = np.asarray(logits(masks, images))
            bank[first : first + len(found), :, k] = found
            first += len(found)
    bank.flush()
    scratch.replace(path)  # a bank that is there is whole
    return read(path, shape)


def read(path: Path, shape: tuple[int, int]) -> Float[np.ndarray, "n classes k"]:
    """The bank in `path`, memory-mapped. Raises UserError if it is missing, damaged, or of other data."""
    try:
        bank = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"The memory bank {path} cannot be read ({type(error).__name__}); remove the folder {path.parent} and run "
            "the same command again to build it anew."
        ) from error
    if bank.ndim != 3 or bank.shape[:2] != shape:
        raise UserError(f"The memory bank {path} has shape {list(bank.shape)}, but the data have {list(shape)}.")
    return bank
