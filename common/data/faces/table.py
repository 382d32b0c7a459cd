"""A user's own faces from a CSV file: path, identity, valence, arousal, and if wanted split, category, age."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.data.faces.dataset import CATEGORIES, SPLITS, FaceData, Faces, PictureFiles, number
from common.data.folder import read_pictures
from common.data.request import Request
from common.errors import UserError, did_you_mean

COLUMNS = ("path", "identity", "valence", "arousal")
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_BLOCK = 4  # frames; of every fifth block of a person in training none is trained on ("seen")
DEFAULTS: dict[str, object] = {"label_scale": 1.0, "folds": 6, "fold": 0, "seen": True, "stream": False}


class Row(NamedTuple):
    """One frame; `split` is "" where the people are to be split here, `category` -1 and `age` nan where unknown."""

    file: Path
    identity: str
    valence: float
    arousal: float
    split: str = ""
    category: int = -1
    age: float = math.nan


def load(request: Request) -> FaceData:
    """Frames of a CSV file (`path`); pictures are named from the file's folder on.

    Columns: path, identity (a person, or a video), valence and arousal in [-1, 1]; optional: split (train, validation,
    test), category (a name or number of CATEGORIES), age in years. Without `split` the people are divided by `seed`
    into `folds` parts: number `fold` is tested, the next one chooses the best epoch, the others are trained on.

    Options: `label_scale` (1.0; 0.1 for labels from -10 to 10), `folds` (6, the 5:1 of the paper), `fold` (0), `seen`
    (True: every fifth block of four frames of a training person is kept out, to measure the gap between people),
    `stream` (False; True: pictures are read in each step, for sets that do not fit into memory).

    Raises:
      UserError: no file, a missing column, labels outside [-1, 1] or not finite, too few people, missing or damaged
        pictures, the same picture twice, or a person in two splits.
    """
    options = request.read_options(DEFAULTS)
    if request.path is None:
        raise UserError(f"data set {request.name!r} needs your CSV file: set --config.dataset_path=<file>.")
    file = Path(request.path).expanduser()
    if not file.is_file():
        raise UserError(f"file {file} (--config.dataset_path) does not exist.")
    rows = read_rows(file, options["label_scale"])
    return make(request, rows, options, licence="the user's own", source=str(file))


def read_rows(file: Path, label_scale: float = 1.0) -> list[Row]:
    """The frames of a CSV file. Raises UserError that names the line."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            table = csv.DictReader(stream)
            present = list(table.fieldnames or ())
            for column in COLUMNS:
                if column not in present:
                    near = did_you_mean(column, present)
                    raise UserError(
                        f"file {file} has no column {column!r}{near}: it must begin with a line of names such as "
                        f"{','.join(COLUMNS)}, but begins with {','.join(present)!r}."
                    )
            rows = [_read(file, line, row, label_scale) for line, row in enumerate(table, 2)]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise UserError(f"file {file} cannot be read as CSV ({error}).") from error
    if not rows:
        raise UserError(f"file {file} names no frames: it has no line below the names of the columns.")
    return rows


def _read(file: Path, line: int, row: dict[str, str | None], label_scale: float) -> Row:
    where = f"line {line} of {file}"
    if not row["path"] or not row["identity"]:
        raise UserError(f"{where} must name a picture and an identity, but is {dict(row)}.")
    valence, arousal = (_label(where, name, row[name], label_scale) for name in ("valence", "arousal"))
    split = (row.get("split") or "").strip()
    if split and split not in _SPLITS:
        raise UserError(f"{where}: split is {split!r}, but must be one of {', '.join(_SPLITS)}.")
    age = row.get("age") or ""
    return Row(
        file.parent / row["path"],
        row["identity"].strip(),
        valence,
        arousal,
        _SPLITS.get(split, ""),
        _category(where, (row.get("category") or "").strip()),
        _number(where, "age", age) if age else math.nan,
    )


def _number(where: str, name: str, text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError as error:
        raise UserError(f"{where}: {name} is {text!r}, but must be a number.") from error


def _label(where: str, name: str, text: str | None, scale: float) -> float:
    value = _number(where, name, text) * scale
    if not -1 <= value <= 1:  # nan fails too
        hint = "; --config.table.label_scale=0.1 is for labels from -10 to 10" if 1 < abs(value) <= 10 else ""
        raise UserError(f"{where}: {name} is {text!r}, but must lie in -1..1{hint}.")
    return value


def _category(where: str, text: str) -> int:
    if not text:
        return -1
    if text.isdigit() and int(text) < len(CATEGORIES):
        return int(text)
    if text.lower() not in CATEGORIES:
        near = did_you_mean(text.lower(), CATEGORIES)
        raise UserError(f"{where}: category is {text!r}{near}, but must be one of {', '.join(CATEGORIES)} or 0..7.")
    return CATEGORIES.index(text.lower())


def make(request: Request, rows: Sequence[Row], options: dict, *, licence: str, source: str) -> FaceData:
    """The splits of these frames, with their pictures. Raises UserError as `load` does."""
    _check_files(source, rows)
    of_rows = _split_people(source, rows, options, request.seed)
    if options["seen"]:
        of_rows = _keep_out(rows, of_rows)
    splits = {}
    for name in SPLITS:
        places = np.flatnonzero(of_rows == name)
        if len(places):
            splits[name] = _read_split([rows[int(place)] for place in places], request.image_size, options["stream"])
    if len(splits["train"].identity_names) < 2:
        raise UserError(
            f"{source} has 1 identity to train on, but at least 2 are needed: identities are matched to one another."
        )
    return FaceData(request.name, splits, licence=licence, source=source)


def _check_files(source: str, rows: Sequence[Row]) -> None:
    seen: set[Path] = set()
    missing = [row.file for row in rows if not row.file.is_file()]
    if missing:
        others = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise UserError(f"picture {missing[0]}{others}, named in {source}, is missing.")
    for row in rows:
        if row.file in seen:
            raise UserError(f"picture {row.file} is named twice in {source}: remove one of the lines.")
        seen.add(row.file)


def _split_people(source: str, rows: Sequence[Row], options: dict, seed: int) -> np.ndarray:
    """Split of each row: as the file says, or by people."""
    given = [row.split for row in rows]
    identity, names = number([row.identity for row in rows])
    if len(names) < 2:
        raise UserError(
            f"{source} has frames of 1 identity only ({rows[0].identity!r}), but identities are matched to another."
        )
    if any(given):
        if not all(given):
            raise UserError(f"{source} gives a split for some frames only: give one for all, or for none.")
        for needed in ("train", "test"):
            if needed not in given:
                raise UserError(f"{source} has no frames of the split {needed!r}.")
        return np.array(given, dtype=object)
    folds, fold = options["folds"], options["fold"]
    if folds < 3 or len(names) < folds + 1:
        raise UserError(
            f"{source} has {len(names)} identities, too few for folds={folds} of different people (at least 3 folds, "
            "and more identities than folds): set --config.table.folds or give a split column."
        )
    if not 0 <= fold < folds:
        raise UserError(f"option 'fold' is {fold}, but must lie in 0..{folds - 1}.")
    part = np.empty(len(names), int)
    part[np.random.default_rng(seed).permutation(len(names))] = np.arange(len(names)) % folds
    kinds = np.where(part == fold, "test", np.where(part == (fold + 1) % folds, "validation", "train"))
    return kinds.astype(object)[identity]


def _keep_out(rows: Sequence[Row], of_rows: np.ndarray) -> np.ndarray:
    """Every fifth block of four frames of each person in training becomes "seen"."""
    count: dict[str, int] = {}
    out = of_rows.copy()
    for place, row in enumerate(rows):
        if of_rows[place] == "train":
            frame = count.get(row.identity, 0)
            count[row.identity] = frame + 1
            if frame // _BLOCK % 5 == 4:
                out[place] = "seen"
    return out


def _read_split(rows: Sequence[Row], image_size: int, stream: bool) -> Faces:
    identity, names = number([row.identity for row in rows])
    files = tuple(row.file for row in rows)
    return Faces(
        images=PictureFiles(files, image_size) if stream else read_pictures(files, image_size, 3),
        valence_arousal=np.array([(row.valence, row.arousal) for row in rows], np.float32),
        identity=identity,
        identity_names=names,
        category=np.array([row.category for row in rows], np.int32),
        age=np.array([row.age for row in rows], np.float32),
        files=tuple(str(row.file) for row in rows),
    )
