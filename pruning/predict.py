"""Classify pictures with a slim network.

    python -m pruning.predict --slim=RUN/slim --images=FOLDER_OR_FILE --out=predictions.csv

Needs nothing but the two files of the slim network. One line per picture: path, class, probability.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import Array, Float, UInt8

from common import tool
from common.augment import normalize
from common.data.folder import find_pictures, read_pictures
from common.errors import UserError
from pruning import deploy
from pruning.models.network import Network


def predict(folder: Path, images: Path, out: Path, batch_size: int = 64) -> int:
    """Write the table; the number of pictures. Raises UserError on whatever is missing or cannot be read."""
    tool.new_file(out)
    files = find_pictures(images)
    graph, params, batch_stats, description = deploy.load(folder)
    pictures = read_pictures(files, description.image_size, description.image_channels)

    @jax.jit
    def classify(variables: Any, pictures: UInt8[Array, "n h w c"]) -> Float[Array, "n classes"]:
        images = normalize(pictures, description.mean, description.std)
        logits: Any = Network(graph).apply(variables, images)
        return jax.nn.softmax(logits)

    variables, rows = {"params": params, "batch_stats": batch_stats}, []
    for first in range(0, len(files), batch_size):
        part = pictures[first : first + batch_size]
        padded = np.pad(part, ((0, batch_size - len(part)), (0, 0), (0, 0), (0, 0)))  # one program for every batch
        rows.append(np.asarray(classify(variables, padded))[: len(part)])
    _write(out, files, np.concatenate(rows), description.class_names)
    return len(files)


def _write(
    out: Path, files: Sequence[Path], probabilities: Float[np.ndarray, "n classes"], names: Sequence[str]
) -> None:
    best = probabilities.argmax(1)
    lines = [
        [file, names[place], f"{row[place]:.6f}"] for file, place, row in zip(files, best, probabilities, strict=True)
    ]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", newline="") as stream:
            csv.writer(stream).writerows([["image", "class", "probability"], *lines])
    except OSError as error:
        raise UserError(f"--out={out} cannot be written ({error.strerror}).") from error


def define_flags() -> None:
    """The flags of this program; not at import, because programs share names."""
    flags.DEFINE_string("slim", "", "Folder of a slim network: `slim` in the work directory of a finished run.")
    flags.DEFINE_string("images", "", "A picture, or a folder of pictures.")
    flags.DEFINE_string("out", "", "CSV file to write.")
    flags.DEFINE_integer("batch_size", 64, "Pictures at once.", lower_bound=1)


def main() -> None:
    values = flags.FLAGS
    if not (values.slim and values.images and values.out):
        raise UserError("give --slim=RUN/slim, --images=FOLDER_OR_FILE and --out=FILE.csv.")
    count = predict(Path(values.slim), Path(values.images), Path(values.out), values.batch_size)
    print(f"{count} picture{'s' * (count > 1)} classified, written to {values.out}.")


if __name__ == "__main__":
    define_flags()
    tool.run(main)
