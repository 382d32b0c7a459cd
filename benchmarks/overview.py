"""The picture of the front page: figures that the notebooks' runs have left, side by side.

    python -m benchmarks.overview --runs=notebooks/runs/notebooks

Run the notebooks first; their runs lie in `runs/notebooks` beside them.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from absl import app, flags
from PIL import Image

from common import plots

_RUNS = flags.DEFINE_string("runs", "notebooks/runs/notebooks", "Folder of the notebooks' runs.")
_OUT = flags.DEFINE_string("out", "docs/overview.png", "Picture to write.")

WIDTH, HEIGHT, DOTS = 12.0, 7.4, 80  # inches, and dots to the inch: the page shows it about so wide


class Panel(NamedTuple):
    title: str
    figure: str  # in the folder of runs
    spot: tuple[int, slice]  # row, and columns of twelve


PANELS = (
    Panel("CFA: defects and heat maps", "anomaly/figures/examples.png", (0, slice(0, 7))),
    Panel("CxGrad: accuracy by inner step", "fewshot/analysis/accuracy.png", (0, slice(7, 12))),
    Panel("SPT and LSA: what is looked at", "vit_small/figures/maps.png", (1, slice(0, 5))),
    Panel("ELIM: transport plan", "fer/figures/plan.png", (1, slice(5, 8))),
    Panel("EKG: widths that are left", "pruning/search/figures/widths.png", (1, slice(8, 12))),
    Panel("IEP: embedding procedure", "distill/modules/figures/embedding_procedure.png", (2, slice(0, 8))),
    Panel("TTE: detection after pre-training", "multitask/detection/figures/detections.png", (2, slice(8, 12))),
)


def main(argv: list[str]) -> None:
    del argv
    files = [Path(_RUNS.value) / panel.figure for panel in PANELS]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        sys.exit(f"{missing[0]} is not there; run the notebooks first, or give the folder of their runs by --runs.")
    figure, axes = plots.figure(WIDTH, HEIGHT)
    axes.remove()
    grid = figure.add_gridspec(3, 12)
    for panel, file in zip(PANELS, files, strict=True):
        with mpl.rc_context(plots.STYLE):
            spot = figure.add_subplot(grid[panel.spot[0], panel.spot[1]])
            spot.imshow(trimmed(np.asarray(Image.open(file).convert("RGB"))), interpolation="antialiased")
            spot.set_title(panel.title)
            spot.axis("off")
    out = Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=DOTS, metadata={"Software": None})


def trimmed(picture: np.ndarray) -> np.ndarray:
    """Without the white around it."""
    places = np.argwhere(picture < 250)[:, :2]
    (top, left), (bottom, right) = places.min(axis=0), places.max(axis=0)
    return picture[top : bottom + 1, left : right + 1]


if __name__ == "__main__":
    app.run(main)
