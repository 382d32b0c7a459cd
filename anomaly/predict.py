"""Scores pictures with a finished run: python -m anomaly.predict --workdir=RUN --images=FILES_OR_FOLDER --out=FOLDER

Writes scores.csv (file, score, normalised score, decision) and for every picture a heat map over what the network saw.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from anomaly import figures, inference
from anomaly.evaluation import Calibration
from common import tool
from common.data.anomaly.frame import SUFFIXES, open_picture
from common.errors import UserError

COLUMNS = ("file", "score", "normalised_score", "threshold", "defective", "heat_map")


def find(paths: Sequence[str]) -> list[tuple[Path, Path]]:
    """(file, its name in the output) of all pictures, folders searched through. Raises UserError for none."""
    found: list[tuple[Path, Path]] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise UserError(f"--images={path} holds no pictures ({', '.join(SUFFIXES)}).")
            found += [(file, file.relative_to(path)) for file in inside]
        elif path.is_file():
            found.append((path, Path(path.name)))
        else:
            raise UserError(f"--images={path} does not exist.")
    names = [name.with_suffix("").as_posix() for _, name in found]
    double = next((name for name, count in Counter(names).items() if count > 1), None)
    if double is not None:
        raise UserError(f"two pictures would have the heat map {double}_heatmap.png: score them in two calls.")
    return found


def predict(model: inference.Model, files: list[tuple[Path, Path]], out: Path, batch_size: int) -> list[dict]:
    """Score the pictures and write the files; returns the rows of scores.csv."""
    scorer, calibration, rows = inference.Scorer(model, batch_size), model.calibration, []
    for first in range(0, len(files), batch_size):
        part = files[first : first + batch_size]
        images = np.stack([model.frame.image(open_picture(file), str(file)) for file, _ in part])
        for (file, name), image, (amap, score) in zip(part, images, scorer(images), strict=True):
            target = out / name.with_name(f"{name.stem}_heatmap.png")
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(figures.heat_map(image, amap, calibration)).save(target)
            rows.append(_row(file, score, calibration, target.relative_to(out)))
    with (out / "scores.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return rows


def _row(file: Path, score: float, calibration: Calibration, heat_map: Path) -> dict:
    values = (
        file.as_posix(),
        f"{score:.7g}",
        f"{float(calibration.normalised(np.float64(score), calibration.image_threshold)):.6f}",
        f"{calibration.image_threshold:.7g}",
        int(score >= calibration.image_threshold),
        heat_map.as_posix(),
    )
    return dict(zip(COLUMNS, values, strict=True))


def define_flags() -> None:
    """The flags of this program; not at import, because programs share names."""
    flags.DEFINE_string("workdir", "", "Work directory of a finished run.")
    flags.DEFINE_list("images", [], "Pictures or folders of pictures, separated by commas.")
    flags.DEFINE_string("out", "", "Folder for scores.csv and heat maps.")
    flags.DEFINE_integer("batch_size", 8, "Pictures scored at a time.", lower_bound=1)
    flags.DEFINE_float("threshold", None, "Image threshold in place of the run's own.")
    flags.DEFINE_float("sensitivity", 0.5, "0.5: the run's thresholds; towards 1 more is called defective.", 0.0, 1.0)


def main() -> None:
    values = flags.FLAGS
    for flag, value in (("workdir", values.workdir), ("images", values.images), ("out", values.out)):
        if not value:
            raise UserError(f"--{flag} is missing; for example: python -m anomaly.predict --workdir=runs/cfa "
                            "--images=photos --out=scores")  # fmt: skip
    files = find(values.images)
    if any(Path(values.out).resolve().is_relative_to(Path(path).resolve()) for path in values.images):
        raise UserError(f"--out={values.out} lies inside --images, where heat maps would be taken for pictures.")
    model = inference.load_model(Path(values.workdir))
    calibration = model.calibration.shifted(values.sensitivity)
    if values.threshold is not None:
        calibration = calibration._replace(image_threshold=values.threshold)
    out = tool.new_folder(Path(values.out), "scores.csv")
    rows = predict(model._replace(calibration=calibration), files, out, values.batch_size)
    defective = sum(row["defective"] for row in rows)
    print(f"{defective} of {len(rows)} pictures are called defective; {out / 'scores.csv'} and heat maps are written.")


if __name__ == "__main__":
    define_flags()
    tool.run(main)
