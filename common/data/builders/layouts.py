"""The trees of files that a data set may come in, and the pictures in them by split and class."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from common.data.folder import SUFFIXES
from common.errors import UserError

SPLITS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}  # and how they are called


class Example(NamedTuple):
    """One picture of a split. `file_name` is unique within its class; pictures of a class are used in its order."""

    class_name: str
    file_name: str
    image: Path | bytes  # encoded (PNG, JPEG ...)


Splits = Mapping[str, Iterable[Example]]


class Layout(NamedTuple):
    """One accepted tree; `read` returns None where the folder does not hold it."""

    tree: str  # as it is shown to the user
    read: Callable[[Path], Splits | None]


def read_splits(name: str, layouts: Sequence[Layout], root: Path) -> Splits:
    """The splits of the first layout that `root`, or a folder right below it (an unpacked archive's own), holds.

    Raises:
      UserError: no such folder, or none of the layouts in it; lists them all.
    """
    if not root.is_dir():
        raise UserError(f"folder {root} (--manual_dir), which should hold data set {name!r}, does not exist.")
    below = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for folder in (root, *below):
        for layout in layouts:
            splits = layout.read(folder)
            if splits is not None:
                return splits
    trees = "; or ".join(layout.tree for layout in layouts)
    found = ", ".join(sorted(entry.name for entry in root.iterdir())[:5]) or "nothing"
    raise UserError(
        f"folder {root} (--manual_dir) does not hold data set {name!r}: looked there, and in the folders right below "
        f"it, for {trees}; but it holds {found}."
    )


def class_folders() -> Layout:
    """Layout of {train,val,test}/<class>/<image>."""
    return Layout("{train,val,test}/<class>/<image>", _read_class_folders)


def _read_class_folders(root: Path) -> Splits | None:
    splits = {}
    for split, spellings in SPLITS.items():
        folder = next((root / name for name in spellings if (root / name).is_dir()), None)
        if folder is None or not any(entry.is_dir() for entry in folder.iterdir()):
            return None
        splits[split] = [example for label in sorted(folder.iterdir()) for example in pictures_of(label)]
    return splits


def pictures_of(folder: Path, class_name: str = "") -> list[Example]:
    """The pictures right in a class folder (nothing where it is a file), sorted by name; named after the folder."""
    if not folder.is_dir() or folder.name.startswith("."):
        return []
    files = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    if not files:
        raise UserError(f"class folder {folder} holds no picture ({', '.join(SUFFIXES)}): remove it or fill it.")
    return [Example(class_name or folder.name, file.name, file) for file in sorted(files)]


def csv_lists() -> Layout:
    """Layout of Ravi and Larochelle: {train,val,test}.csv with columns filename and label, beside images/."""
    return Layout("{train,val,test}.csv (columns filename, label) beside images/<filename>", _read_csv_lists)


def _read_csv_lists(root: Path) -> Splits | None:
    lists = {split: _first_file(root, names, ".csv") for split, names in SPLITS.items()}
    if None in lists.values() or not (root / "images").is_dir():
        return None
    return {split: _read_csv(file, root / "images") for split, file in lists.items() if file is not None}


def _read_csv(file: Path, images: Path) -> list[Example]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            table = csv.DictReader(stream)
            names, rows = table.fieldnames or (), list(enumerate(table, 2))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise UserError(f"file {file} cannot be read as CSV ({error}): copy it anew.") from error
    if not {"filename", "label"} <= set(names):
        raise UserError(f"file {file} must begin with the line 'filename,label', but begins with {names}.")
    examples = []
    for number, row in rows:
        if not row["filename"] or not row["label"]:
            raise UserError(f"line {number} of {file} must hold a file name and a label, but is {row}.")
        image = images / row["filename"]
        if not image.is_file():
            raise UserError(f"picture {image}, named in line {number} of {file}, is missing.")
        examples.append(Example(row["label"], row["filename"], image))
    return sorted(examples)


def file_per_split(tree: str, stem: str, suffixes: Sequence[str], read: Callable[[Path], Iterable[Example]]) -> Layout:
    """Layout with one file a split, `stem` with the split's name in place of {} and one of the suffixes."""

    def read_files(root: Path) -> Splits | None:
        for suffix in suffixes:
            names = {split: [stem.format(name) for name in spellings] for split, spellings in SPLITS.items()}
            files = {split: _first_file(root, stems, suffix) for split, stems in names.items()}
            if None not in files.values():
                return {split: read(file) for split, file in files.items() if file is not None}
        return None

    return Layout(tree, read_files)


def _first_file(root: Path, stems: Sequence[str], suffix: str) -> Path | None:
    return next((root / f"{stem}{suffix}" for stem in stems if (root / f"{stem}{suffix}").is_file()), None)
