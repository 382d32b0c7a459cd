"""Arrays that are slow to make, kept in the user's cache directory between runs."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from absl import logging

from common import npz


def cache_dir(sub: str) -> Path:
    """Folder for cached files of one kind: $LEANVISION_CACHE, else $XDG_CACHE_HOME or ~/.cache, + leanvision/`sub`.

    The folder is not created here. LEANVISION_CACHE stands for the whole `leanvision` folder.
    """
    own = os.environ.get("LEANVISION_CACHE")
    if own:
        return Path(own).expanduser() / sub
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(user).expanduser() / "leanvision" / sub


def cached_arrays(key: Mapping[str, object], make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of `make()`, read from the cache when it holds them and written to it when not.

    Args:
      key: everything that the arrays depend on (JSON-able), versions included; `key['name']` starts the file's name.
      make: makes the arrays; they may not hold Python objects.

    A truncated or damaged file is made anew; a cache that cannot be written costs time only (one warning line).
    Files are replaced atomically, so processes may share a cache.
    """
    digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:24]
    file = cache_dir("data") / f"{key['name']}-{digest}.npz"
    if (arrays := _read(file)) is not None:
        return arrays
    arrays = make()
    _write(file, arrays)
    return arrays


def _read(file: Path) -> dict[str, np.ndarray] | None:
    try:
        return npz.read(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logging.warning("Cached file %s cannot be read (%s); it is made anew.", file, error)
        return None


def _write(file: Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.stem, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as stream:
                np.savez(stream, allow_pickle=False, **arrays)
            os.replace(temporary, file)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        logging.warning("Data cannot be cached in %s (%s); it is made anew in each run.", file.parent, error)
