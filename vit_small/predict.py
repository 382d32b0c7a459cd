"""Classify pictures with a finished run.

    python -m vit_small.predict --workdir=RUN --images=FOLDER_OR_FILE --out=predictions.csv [--which=last|best]

Needs nothing but the work directory. One line per picture: path, class, probability, and the second and third guess.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from common import tool, workdir
from common.checkpoint import read_run
from common.data.folder import find_pictures, read_pictures
from common.errors import UserError
from vit_small import experiment, train
from vit_small.report import DESCRIPTION

GUESSES = 3


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags.")


def main(arguments: Sequence[str]) -> int:
    """Classify what the flags name; the exit code: 2, and one sentence, for what the user can mend."""
    parser = _Parser(prog="python -m vit_small.predict", description=__doc__, allow_abbrev=False)
    parser.add_argument("--workdir", required=True, type=Path, help="folder of a finished run")
    parser.add_argument("--images", required=True, type=Path, help="a picture, or a folder of pictures")
    parser.add_argument("--out", required=True, type=Path, help="CSV file to write")
    parser.add_argument("--which", default="last", choices=("last", "best"), help="the last epoch or the best")
    parser.add_argument("--batch_size", default=64, type=int, help="pictures at once")
    logging.set_verbosity(logging.ERROR)  # Orbax warns about every folder that it may not change
    try:
        given = parser.parse_args(arguments)
        if given.batch_size < 1:
            raise UserError(f"--batch_size is {given.batch_size}, but must be at least 1.")
        count = predict(given.workdir, given.images, given.out, given.which, given.batch_size)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(f"{count} pictures classified, written to {given.out}.")
    return 0


def predict(folder: Path, images: Path, out: Path, which: str = "last", batch_size: int = 64) -> int:
    """Write the table; the number of pictures. Raises UserError on whatever is missing or cannot be read."""
    tool.new_file(out)
    files = find_pictures(images)
    config, description, params = open_run(folder, which)
    names = description["class_names"]
    recipe = experiment.make_recipe(config, len(names), tuple(description["mean"]), tuple(description["std"]))
    pixels = read_pictures(files, config.image_size, config.channels)
    classify = jax.jit(lambda params, images: jax.nn.softmax(train.predict(recipe, params, images)))
    rows = []
    for first in range(0, len(files), batch_size):
        part = pixels[first : first + batch_size]
        padded = np.concatenate([part, np.zeros((batch_size - len(part), *part.shape[1:]), np.uint8)])
        rows.append(np.asarray(classify(params, jnp.asarray(padded)))[: len(part)])
    write(out, files, np.concatenate(rows), names)
    return len(files)


def open_run(folder: Path, which: str = "last") -> tuple[ConfigDict, dict[str, Any], Any]:
    """(config, class names and normalisation, parameters) of a finished run."""
    config, description = workdir.read_finished(folder, DESCRIPTION)
    return config, description, read_run(folder, which)[1]["params"]


def write(out: Path, files: Sequence[Path], probabilities: np.ndarray, names: Sequence[str]) -> None:
    """The table as CSV."""
    guesses = min(GUESSES, len(names))
    order = np.argsort(-probabilities, axis=1)[:, :guesses]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(["image", *(f"{what}{i + 1}" for i in range(guesses) for what in ("class", "probability"))])
            for file, row, best in zip(files, probabilities, order, strict=True):
                table.writerow([file, *(cell for i in best for cell in (names[i], f"{row[i]:.6f}"))])
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another --out.") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
