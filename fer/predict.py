"""Valence, arousal and category of face crops, with a finished run.

    python -m fer.predict --workdir=RUN --images=FOLDER_OR_FILE --out=FOLDER [--which=last|best]

Needs nothing but the work directory. Writes predictions.csv, a line per picture, and predictions.png: the faces with
what was found, and where they lie in the plane of valence and arousal. Pictures must be crops of faces such as the run
was trained on: nothing here looks for faces.

A run of valence and arousal names the sector of the plane as category (neutral in the middle, six sectors of 60
degrees): a reading of the two numbers, not a prediction of its own. A run of categories gives the category, its
probability, and no valence or arousal.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from common import plots, tool, workdir
from common.checkpoint import read_run
from common.data.faces import CATEGORIES
from common.data.faces.people import categorize
from common.data.folder import find_pictures, read_pictures
from common.errors import UserError
from fer import experiment, train
from fer.report import DESCRIPTION

COLUMNS: tuple[str, ...] = ("image", "valence", "arousal", "category", "probability")
_SHOWN = 24  # faces in the figure


class Model(NamedTuple):
    """A finished run, ready to predict."""

    config: ConfigDict
    recipe: train.Recipe
    params: Any
    model_state: Any
    description: dict[str, Any]


def open_run(folder: Path, which: str = "last") -> Model:
    """The last or best step of a finished run. Raises UserError on what is missing."""
    config, description = workdir.read_finished(folder, DESCRIPTION)
    recipe = experiment.make_recipe(config, tuple(description["mean"]), tuple(description["std"]))
    saved = read_run(folder, which)[1]
    return Model(config, recipe, saved["params"], saved["model_state"], description)


def predict_pictures(model: Model, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Valence and arousal [n, 2], or probabilities [n, K], of uint8 pictures [n, S, S, 3] of the run's image_size."""
    recipe = model.recipe

    @jax.jit
    def scores(params, statistics, pictures):
        return train.predict(recipe, params, statistics, pictures)["scores"]

    found = []
    for first in range(0, len(images), batch_size):
        part = images[first : first + batch_size]
        padded = np.concatenate([part, np.zeros((batch_size - len(part), *part.shape[1:]), np.uint8)])
        found.append(np.asarray(scores(model.params, model.model_state, jnp.asarray(padded)))[: len(part)])
    return np.concatenate(found)


def rows_of(model: Model, files: Sequence[Path], scores: np.ndarray) -> list[dict[str, str]]:
    """The lines of the table."""
    rows = []
    if model.config.task == "category":
        for file, row in zip(files, scores, strict=True):
            best = int(np.argmax(row))
            cells = ("", "", model.description["categories"][best], f"{row[best]:.6f}")
            rows.append(dict(zip(COLUMNS, (file.as_posix(), *cells), strict=True)))
        return rows
    kinds = categorize(np.asarray(scores, np.float64))
    for file, (valence, arousal), kind in zip(files, scores, kinds, strict=True):
        cells = (f"{valence:.6f}", f"{arousal:.6f}", CATEGORIES[kind], "")
        rows.append(dict(zip(COLUMNS, (file.as_posix(), *cells), strict=True)))
    return rows


def predict(folder: Path, images: Path, out: Path, which: str = "last", batch_size: int = 64) -> int:
    """Write table and figure; the number of pictures. Raises UserError on what is missing or cannot be read."""
    files = find_pictures(images)
    if images.is_dir() and out.resolve().is_relative_to(images.resolve()):
        raise UserError(f"--out={out} lies inside --images, where the figure would be taken for a face.")
    model = open_run(folder, which)
    pixels = read_pictures(files, model.config.image_size, 3)
    scores = predict_pictures(model, pixels, batch_size)
    rows = rows_of(model, files, scores)
    out = tool.new_folder(out, "predictions.csv")
    with (out / "predictions.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, COLUMNS)
        table.writeheader()
        table.writerows(rows)
    draw(out / "predictions.png", model, pixels, scores, rows)
    return len(files)


def draw(path: Path, model: Model, images: np.ndarray, scores: np.ndarray, rows: Sequence[dict[str, str]]) -> None:
    """The first faces with what was found, and for valence and arousal all of them in the plane."""
    count = min(len(images), _SHOWN)
    lines = -(-count // 6)
    plane = model.config.task != "category"
    with mpl.rc_context(plots.STYLE):
        fig, axes = plots.figure(8.0, 1.7 * lines + 4.2 * plane)
        axes.remove()
        grid = fig.add_gridspec(lines + plane, 6, height_ratios=[*[1.0] * lines, *[2.5] * plane])
        for i, row in enumerate(rows[:count]):
            ax = fig.add_subplot(grid[i // 6, i % 6])
            ax.imshow(images[i])
            ax.axis("off")
            numbers = f"V {float(row['valence']):+.2f}  A {float(row['arousal']):+.2f}" if plane else row["probability"]
            ax.set_title(f"{row['category']}\n{numbers}", fontsize="small")
        if plane:
            ax = fig.add_subplot(grid[lines, :])
            ax.scatter(*np.asarray(scores).T, s=14)
            for line in (ax.axhline, ax.axvline):
                line(0, color="0.6", linewidth=1)
            ax.set_xlabel("valence")
            ax.set_ylabel("arousal")
            ax.set_title(f"{len(images)} pictures")
            farthest = max(1.05, 1.05 * float(np.abs(scores).max()))
            ax.set(xlim=(-farthest, farthest), ylim=(-farthest, farthest))
        synthetic = " (synthetic)" if model.description["synthetic"] else ""
        fig.suptitle(f"Model trained on {model.description['dataset']}{synthetic}")
    plots.save(fig, path)


def define_flags() -> None:
    """The flags of this program; not at import, because programs share names."""
    flags.DEFINE_string("workdir", "", "Work directory of a finished run.")
    flags.DEFINE_string("images", "", "A face crop, or a folder of them.")
    flags.DEFINE_string("out", "", "Folder for predictions.csv and the figure.")
    flags.DEFINE_enum("which", "last", ["last", "best"], "The last step or the best.")
    flags.DEFINE_integer("batch_size", 64, "Pictures at a time.", lower_bound=1)


def main() -> None:
    values = flags.FLAGS
    for flag in ("workdir", "images", "out"):
        if not values[flag].value:
            raise UserError(f"--{flag} is missing; for example: python -m fer.predict --workdir=runs/elim "
                            "--images=photos --out=predictions")  # fmt: skip
    count = predict(Path(values.workdir), Path(values.images), Path(values.out), values.which, values.batch_size)
    print(f"{count} pictures, written to {values.out}/predictions.csv and predictions.png.")


if __name__ == "__main__":
    define_flags()
    tool.run(main)
