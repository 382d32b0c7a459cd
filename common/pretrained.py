"""Weights trained elsewhere: read without their framework, and put in our places with every name accounted for.

    read_weights(path, key=None, prefix="")          {source name: array} of a .safetensors, .pt, .pth or .bin file
    match(weights, entries, template, ignore=...)    Match(tree, used, ignored): our tree, or a UserError with the names
    Entry(source, target, transform)                 one row of a name map; transforms: `copy`, `conv_kernel`,
                                                     `linear_kernel`, or any function of one array
    torch_entries(template)                          the rows for modules that are named as PyTorch's are
    save_safetensors(path, arrays, metadata)         the opposite of read_weights, written atomically
    check_sha256(path, expected)                     refuse a file with other content

Nothing in a weights file is executed (see `common.torch_files`). A tree is made of nested dicts; its paths are written
"params/conv1/kernel". Numpy only.
"""

import fnmatch
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from common.errors import UserError, did_you_mean
from common.torch_files import read_torch

_MOST_NAMES = 100_000  # a file that nests one dict in many places must not fill the memory with names
_SHOWN = 5


def read_weights(path: str | os.PathLike[str], key: str | None = None, prefix: str = "") -> dict[str, np.ndarray]:
    """Every array of a weights file by name, in the file's order.

    Args:
      path: safetensors, or what `torch.save` wrote in either of its forms; told apart by content, not by name.
      key: take only the dictionary under this name of a checkpoint, such as "state_dict" or "network" ("a.b" for one
        inside another). None: all arrays of all nested dictionaries, their names joined by dots.
      prefix: take only names that begin with it, and cut it off, such as "module." of a parallel wrapper.

    Returns:
      {name: array}; arrays may be read-only and share memory. Entries that are no tensors (epoch, settings) are left
      out, and so are tensors inside lists.

    Raises:
      UserError: missing, damaged or foreign file, no such key, no weights under key and prefix.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist.")
    try:
        with path.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise UserError(f"weights file {path} cannot be read: {error.strerror}.") from error
    saved: Any = _read_safetensors(path) if start[8:] == b"{" else _read_torch(path, start)
    for name in key.split(".") if key else ():
        if not isinstance(saved, dict) or not isinstance(saved.get(name), dict):
            groups = [str(other) for other, inner in saved.items() if isinstance(inner, dict)]
            raise UserError(
                f"{path} has no dictionary {key!r}{did_you_mean(name, groups)}; "
                f"its dictionaries at this level: {', '.join(map(repr, groups)) or 'none'}."
            )
        saved = saved[name]
    weights = _flatten(saved, path)
    chosen = {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}
    if not chosen:
        begin = f" whose name begins with {prefix!r}" if prefix else ""
        raise UserError(f"{path} holds no weights{begin}{_listed(' but', list(weights)) if weights else ''}.")
    return chosen


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return safetensors_numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is a damaged safetensors file or holds a type that numpy lacks "
            f"({' '.join(str(error).split())}): copy or download it anew."
        ) from error


def _read_torch(path: Path, start: bytes) -> Any:
    if start[:1] != b"\x80" and start[:2] != b"PK":
        raise UserError(
            f"{path} is no weights file: it begins with {start!r}, but must be .safetensors or a file of torch.save "
            "(a pointer of Git LFS or a web page saved by mistake begins with text)."
        )
    saved = read_torch(path)
    if not isinstance(saved, dict):
        raise UserError(f"{path} holds a {type(saved).__name__}, but must hold a dictionary of tensors.")
    return saved


def _flatten(saved: dict[Any, Any], path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    for count, (name, value) in enumerate(_walk(saved, "")):
        if name in arrays or count >= _MOST_NAMES:
            raise UserError(f"{path} holds two entries called {name!r}, or too many: choose one dictionary by its key.")
        if isinstance(value, np.ndarray):
            arrays[name] = value
    return arrays


def _walk(group: dict[Any, Any], before: str) -> Iterator[tuple[str, Any]]:
    for key, value in group.items():
        yield f"{before}{key}", value
        if isinstance(value, dict):
            yield from _walk(value, f"{before}{key}.")


def copy(array: np.ndarray) -> np.ndarray:
    """Biases, norms and whatever has the same axes in both frameworks."""
    return array


def conv_kernel(array: np.ndarray) -> np.ndarray:
    """Convolution [O, I, h, w] -> [h, w, I, O]; depthwise [C, 1, h, w] -> [h, w, 1, C]."""
    return np.transpose(array, (2, 3, 1, 0)) if array.ndim == 4 else array


def linear_kernel(array: np.ndarray) -> np.ndarray:
    """Linear layer [out, in] -> [in, out]."""
    return np.transpose(array) if array.ndim == 2 else array


class Entry(NamedTuple):
    """One row of a name map: the array called `source` there becomes the leaf `target` of our tree."""

    source: str
    target: str
    transform: Callable[[np.ndarray], np.ndarray] = copy


_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


def torch_entries(template: Mapping[str, Any]) -> list[Entry]:
    """One entry for each leaf of flax variables whose modules bear PyTorch's names, with `_` before a number for `.`.

    params/layer1_0/conv1/kernel <- layer1.0.conv1.weight; kernels of rank 4 are convolutions, of rank 2 linear layers;
    norms have scale, bias, and mean and var in batch_stats.
    """
    entries = []
    for target, leaf in flatten_tree(template).items():
        collection, *modules, name = target.split("/")
        source = ".".join([*(re.sub(r"_(?=\d)", ".", module) for module in modules), _LEAVES[collection, name]])
        transform = {4: conv_kernel, 2: linear_kernel}[len(leaf.shape)] if name == "kernel" else copy
        entries.append(Entry(source, target, transform))
    return entries


class Match(NamedTuple):
    tree: dict[str, Any]  # nested dicts of numpy arrays, exactly the template's leaves
    used: tuple[str, ...]  # source names
    ignored: tuple[str, ...]  # source names that matched an ignore pattern


def match(
    weights: Mapping[str, np.ndarray],
    entries: Iterable[Entry],
    template: Mapping[str, Any],
    ignore: Sequence[str] = ("*num_batches_tracked",),
    where: str = "the weights",
) -> Match:
    """Put weights into a tree of our own, accounting for every name on both sides.

    Args:
      weights: {source name: array}, as `read_weights` gives it.
      entries: one for each leaf of `template`.
      template: nested dicts whose leaves have a shape and a dtype, for instance `jax.eval_shape` of `model.init`.
      ignore: patterns (`fnmatch`: `*`, `?`, `[...]`) of source names that may be left over, such as "fc.*" when only
        the trunk is built. A name that an entry uses is never ignored.
      where: what the weights are called in errors, usually the file.

    Returns:
      The tree with fresh arrays of the template's dtypes, and the names that were used and ignored.

    Raises:
      UserError: weights that are missing, left over, of another shape or kind of number, or not finite; all of the
        first kind found are named (the first five written out).
      ValueError: entries and template do not belong to each other (a mistake in our code).
    """
    entries = list(entries)
    leaves = flatten_tree(template)
    targets = [entry.target for entry in entries]
    if sorted(targets) != sorted(leaves):
        raise ValueError(f"entries and template differ in {sorted(set(targets) ^ set(leaves))[:_SHOWN]} or repeat one")
    sources = {entry.source for entry in entries}
    left_over = [name for name in weights if name not in sources]
    ignored = tuple(name for name in left_over if any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore))
    unexpected = [name for name in left_over if name not in set(ignored)]
    missing = [name for name in sorted(sources) if name not in weights]
    if missing or unexpected:
        parts = [
            *([_listed(f"{len(missing)} missing:", missing)] if missing else []),
            *([_listed(f"{len(unexpected)} unexpected:", unexpected)] if unexpected else []),
        ]
        raise UserError(f"{where} does not fit the network ({'; '.join(parts)}): is it of another model?")
    placed, wrong = {}, []
    for entry in entries:
        leaf = leaves[entry.target]
        try:
            array = entry.transform(weights[entry.source])
            problem = _problem(array, leaf)
        except (IndexError, ValueError):  # a transform that splits or reshapes
            problem = f"has shape {list(weights[entry.source].shape)}, which cannot become {list(leaf.shape)}"
        if problem:
            wrong.append(f"{entry.source} {problem}")
        else:
            placed[entry.target] = np.array(array, dtype=leaf.dtype, order="C")
    if wrong:
        raise UserError(f"{where} does not fit the network ({_listed('wrong:', wrong)}): is it of another model?")
    return Match(nest(placed), tuple(entry.source for entry in entries), ignored)


def _problem(array: np.ndarray, leaf: Any) -> str:
    if array.shape != tuple(leaf.shape):
        return f"has shape {list(array.shape)} instead of {list(leaf.shape)}"
    floats = [_is_float(np.dtype(dtype)) for dtype in (array.dtype, leaf.dtype)]
    if floats[0] != floats[1]:
        return f"holds {array.dtype} instead of {np.dtype(leaf.dtype)}"
    return "holds values that are not finite" if floats[0] and not np.isfinite(array).all() else ""


def _is_float(dtype: np.dtype) -> bool:
    return np.issubdtype(dtype, np.floating) or dtype.name == "bfloat16"


def _listed(title: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{title} {', '.join(names[:_SHOWN])}{more}"


def flatten_tree(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a/b/c": leaf} of nested dicts."""
    flat = {}
    for name, value in tree.items():
        inner = flatten_tree(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        flat |= inner
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite of `flatten_tree`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *groups, name = path.split("/")
        group = tree
        for part in groups:
            group = group.setdefault(part, {})
        group[name] = value
    return tree


def save_safetensors(
    path: str | os.PathLike[str], arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write {name: array} as safetensors, atomically; jax arrays and views are taken as they are.

    Raises:
      UserError: the folder cannot be written, or an array has a type that the format lacks.
    """
    path = Path(path).expanduser()
    # Made contiguous, because safetensors would write a transposed view in the wrong order.
    ready = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    ready = {name: array.reshape(np.shape(arrays[name])) for name, array in ready.items()}  # 0-d became 1-d
    try:
        content = safetensors_numpy.save(ready, dict(metadata) if metadata else None)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be written: safetensors has no such type ({error}).") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def check_sha256(path: str | os.PathLike[str], expected: str) -> None:
    """Refuse a file whose SHA-256 does not begin with `expected` (8 to 64 hexadecimal digits).

    Raises:
      UserError: another file, or one that cannot be read.
    """
    if not 8 <= len(expected) <= 64:
        raise ValueError(f"a SHA-256 or its beginning has 8 to 64 digits, but {expected!r} has {len(expected)}")
    try:
        with open(path, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"weights file {path} cannot be read: {error.strerror}.") from error
    if not found.startswith(expected.lower()):
        raise UserError(
            f"{path} has SHA-256 {found[: max(16, len(expected))]}, but {expected} was expected: download it anew."
        )
