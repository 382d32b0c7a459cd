"""The golden files: arrays computed with the official implementations, and which of them the tests have asked for.

An array counts when a test subscripts it, so nothing here hands out all arrays of a file at once. `tests/trust/
test_golden.py` holds every array to a test that reads it; who reads what is written by

    pytest -n 2 -m '' --record-golden
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

FOLDER = Path(__file__).parent / "golden"
RECORD = FOLDER / "read_by.json"  # {file: {test or module: [array, or the beginning of names of arrays and *]}}
READ: set[tuple[str, str]] = set()  # (file, array) that tests of this process have read


class Golden(Mapping[str, Any]):
    """The arrays of a file whose names begin with `prefix`, by the rest of their names, each through `convert`."""

    def __init__(self, file: str, arrays: Mapping[str, np.ndarray], prefix: str, convert: Callable[[np.ndarray], Any]):
        self.file, self._arrays, self._prefix, self._convert = file, arrays, prefix, convert

    def __getitem__(self, name: str) -> Any:
        array = self._arrays[self._prefix + name]
        READ.add((self.file, self._prefix + name))
        return self._convert(array)

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in self._arrays if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return f"{self._prefix}{name}" in self._arrays

    def under(self, prefix: str) -> "Golden":
        return Golden(self.file, self._arrays, self._prefix + prefix, self._convert)

    def mapped(self, convert: Callable[[np.ndarray], Any]) -> "Golden":
        return Golden(self.file, self._arrays, self._prefix, convert)

    def items(self) -> NoReturn:
        raise TypeError("name the arrays that the test compares: one that is only iterated over is not compared")

    values = items


@functools.cache
def load(family: str, name: str) -> Golden:
    """A file of tests/golden."""
    with np.load(FOLDER / family / f"{name}.npz") as stored:
        return Golden(f"{family}/{name}", dict(stored), "", lambda array: array)


def names() -> dict[str, list[str]]:
    """{file: its arrays} of all files."""
    found = {}
    for path in sorted(FOLDER.glob("*/*.npz")):
        with np.load(path) as stored:
            found[f"{path.parent.name}/{path.stem}"] = stored.files
    return found


def meant(entries: list[str], arrays: list[str]) -> set[str]:
    """The arrays that entries of the record stand for."""
    starts = tuple(entry[:-1] for entry in entries if entry.endswith("*"))
    return {name for name in arrays if name in entries or (starts and name.startswith(starts))}


def shortened(wanted: set[str], arrays: list[str]) -> list[str]:
    """Entries that stand for `wanted` and for no other array."""
    entries, left = [], sorted(wanted)
    while left:
        name = left[0]
        for end in range(len(name)):
            alike = {other for other in arrays if other.startswith(name[:end])}
            if alike <= wanted and len(alike) > 1:
                entries.append(name[:end] + "*")
                break
        else:
            alike = {name}
            entries.append(name)
        left = [other for other in left if other not in alike]
    return entries


@functools.cache
def record() -> dict[str, dict[str, list[str]]]:
    return json.loads(RECORD.read_text())


@functools.cache
def claims(test: str) -> frozenset[tuple[str, str]]:
    """(file, array) that a test, or a module when it is imported, is recorded to read."""
    return frozenset(
        (file, name)
        for file, by in record().items()
        if test in by
        for name in meant(by[test], list(load(*file.split("/"))))
    )


class Recorder:
    """Writes the record: each array goes to the first test that reads it."""

    def __init__(self):
        self.first: dict[tuple[str, str], str] = {}
        self.ran: set[str] = set()

    def note(self, test: str) -> None:
        self.ran.add(test)
        for key in READ - self.first.keys():
            self.first[key] = test

    def told(self) -> dict[str, Any]:
        """All of it, as one worker of xdist tells it."""
        return {"ran": sorted(self.ran), "first": [[*key, test] for key, test in self.first.items()]}

    def add(self, told: dict[str, Any]) -> None:
        self.ran |= set(told.get("ran", ()))
        for file, name, test in told.get("first", ()):
            self.first.setdefault((file, name), test)

    def write(self) -> None:
        """Replaces what is recorded of the tests that ran; arrays that others read stay theirs."""
        before = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
        after = {}
        for file, arrays in names().items():
            kept = {test: e for test, e in before.get(file, {}).items() if test not in self.ran}
            taken = set().union(*(meant(entries, arrays) for entries in kept.values()))
            found: dict[str, set[str]] = {}
            for (of, name), test in self.first.items():
                if of == file and name not in taken:
                    found.setdefault(test, set()).add(name)
            new = {test: shortened(wanted, arrays) for test, wanted in found.items()}
            after[file] = dict(sorted((kept | new).items()))
        RECORD.write_text(json.dumps(after, indent=1) + "\n")
