"""AFEW-VA, AffectNet and Aff-Wild2 as their authors hand them out, with pictures that show cropped faces.

Nothing here looks for faces: crop the pictures first, under the same names. What lies otherwise, list in a CSV file and
read it as data set "csv".
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from common import npz
from common.data.faces import table
from common.data.faces.dataset import FaceData
from common.data.folder import SUFFIXES
from common.data.missing import missing_data
from common.data.request import Request
from common.errors import UserError


class _Entry(NamedTuple):
    tree: str  # as it is shown to the user
    licence: str
    source: str
    read: Callable[[Path, float], list[table.Row]]


def load(request: Request) -> FaceData:
    """The set whose folder is `path`; the options are those of `table.load`.

    Raises:
      UserError: no path, another tree of files, or what `table.load` raises.
    """
    entry, options = _ENTRIES[request.name], request.read_options(table.DEFAULTS)
    root = Path(request.path or "").expanduser()
    if request.path is None or not root.is_dir():
        remedy = (
            f"ask its authors for it ({entry.licence}), crop the faces, and set --config.dataset_path=<folder> that "
            f"holds {entry.tree}"
        )
        raise missing_data(request.name, [root] if request.path else ["--config.dataset_path, which is empty"], remedy,
                           embedded="--config.dataset=faces")  # fmt: skip
    rows = entry.read(root, options["label_scale"])
    if not rows:
        raise UserError(f"folder {root} does not hold data set {request.name!r} as {entry.tree}.")
    return table.make(request, rows, options, licence=entry.licence, source=entry.source)


def _afew_va(root: Path, label_scale: float) -> list[table.Row]:
    """The person is the clip, as in the official code."""
    rows = []
    for file in sorted(root.glob("*/*.json")):
        try:
            clip = json.loads(file.read_text())
            frames = clip["frames"].items()
            labelled = [(name, float(frame["valence"]), float(frame["arousal"])) for name, frame in sorted(frames)]
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise UserError(f"file {file} is no list of labelled frames of AFEW-VA ({error!r}).") from error
        for name, valence, arousal in labelled:
            where = f"frame {name} of {file}"
            picture, person = file.parent / f"{name}.png", file.parent.name
            valence, arousal = (_checked(where, value, label_scale) for value in (valence, arousal))
            rows.append(table.Row(picture, person, valence, arousal))
    return rows


def _affectnet(root: Path, label_scale: float) -> list[table.Row]:
    """Nobody knows who is shown, so each picture is its own person; ages come from ages.csv (image, age) if there.

    Pictures are named from the root on, as in train_set/images/12.jpg.
    """
    ages = _ages(root / "ages.csv")
    rows = []
    for folder, split in (("train_set", "train"), ("val_set", "test")):
        annotations = root / folder / "annotations"
        pictures = (root / folder / "images").glob("*")
        for image in sorted(picture for picture in pictures if picture.suffix.lower() in SUFFIXES):
            values = [_array(annotations / f"{image.stem}_{kind}.npy") for kind in ("val", "aro", "exp")]
            if min(values[:2]) < -1.5:  # -2: no face, or unclear
                continue
            where = f"the annotation of {image}"
            valence, arousal = (_checked(where, value, label_scale) for value in values[:2])
            category = int(values[2])
            key = image.relative_to(root).as_posix()
            known = category if 0 <= category < 8 else -1
            person, age = f"{split}/{image.stem}", ages.get(key, math.nan)
            rows.append(table.Row(image, person, valence, arousal, split, known, age))
    return rows


def _aff_wild2(root: Path, label_scale: float) -> list[table.Row]:
    """The person is the video; line i of a video's list labels frame i + 1, frames without a picture are left out."""
    rows = []
    for folder, split in (("Train_Set", "train"), ("Validation_Set", "test")):
        for file in sorted((root / "annotations").glob(f"**/{folder}/*.txt")):
            lines = _lines(file)
            if not lines or [cell.strip() for cell in lines[0].lower().split(",")] != ["valence", "arousal"]:
                continue  # other tasks of the same challenge
            for number, line in enumerate(lines[1:], 1):
                image = root / "cropped_aligned" / file.stem / f"{number:05d}.jpg"
                values = _numbers(f"line {number + 1} of {file}", line)
                if min(values) < -1.5 or not image.is_file():  # -5: not labelled
                    continue
                where = f"line {number + 1} of {file}"
                valence, arousal = (_checked(where, value, label_scale) for value in values)
                rows.append(table.Row(image, file.stem, valence, arousal, split))
    return rows


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"file {file} cannot be read ({error}): copy it anew.") from error


def _numbers(where: str, line: str) -> tuple[float, float]:
    try:
        valence, arousal = (float(cell) for cell in line.split(","))
    except ValueError as error:
        raise UserError(f"{where} must hold a valence and an arousal, but is {line!r}.") from error
    return valence, arousal


def _checked(where: str, value: float, scale: float) -> float:
    if not -1 <= value * scale <= 1:
        raise UserError(f"{where} has the label {value}, which times label_scale={scale} does not lie in -1..1.")
    return value * scale


def _array(file: Path) -> float:
    try:
        return float(npz.read_array(file).item())
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"annotation {file} is missing or no number ({reason}): copy it anew.") from error


def _ages(file: Path) -> dict[str, float]:
    if not file.is_file():
        return {}
    table = csv.DictReader(_lines(file))
    try:
        names, rows = table.fieldnames, list(table)
    except csv.Error as error:
        raise UserError(f"file {file} cannot be read as CSV ({error}): copy it anew.") from error
    if not {"image", "age"} <= set(names or ()):
        raise UserError(f"file {file} must begin with the line 'image,age', but begins with {names}.")
    try:
        return {row["image"]: float(row["age"]) for row in rows}
    except (ValueError, TypeError) as error:
        raise UserError(f"file {file} has an age that is no number ({error}).") from error


_ENTRIES = {
    "afew_va": _Entry(
        "<clip>/<frame>.png and <clip>/<clip>.json",
        "non-commercial research, on request",
        "AFEW-VA (Kossaifi et al. 2017)",
        _afew_va,
    ),
    "affectnet": _Entry(
        "{train_set,val_set}/images/<n>.jpg and annotations/<n>_{val,aro,exp}.npy, for age bins ages.csv (image, age)",
        "non-commercial research, on request",
        "AffectNet (Mollahosseini et al. 2017)",
        _affectnet,
    ),
    "aff_wild2": _Entry(
        "annotations/.../{Train_Set,Validation_Set}/<video>.txt and cropped_aligned/<video>/<frame>.jpg",
        "non-commercial research, on request",
        "Aff-Wild2 (Kollias and Zafeiriou 2019)",
        _aff_wild2,
    ),
}
