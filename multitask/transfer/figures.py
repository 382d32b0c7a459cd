"""Pictures of what a target task found: detections drawn on images, the nearest images of some queries."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from common import plots
from common.data.detection import DetectionData
from multitask.detection.voc_ap import FALSE, TRUE

_RIGHT, _WRONG, _OBJECT = plots.PALETTE[2], plots.PALETTE[1], "white"
_SHOWN_SCORE = 0.3  # of the boxes that are drawn; nothing is cut off where AP is computed


def detections(found: Any, flags: Int[np.ndarray, "n k"], dataset: DetectionData, path: Path, count: int = 8) -> None:
    """The first test images with their objects (thin, white) and the detections above a score of 0.3: green where they
    are right, orange where they are wrong."""
    test, count = dataset.test, min(count, len(dataset.test.images))
    figure, axes = _panels(-(-count // 4), min(count, 4))
    for image, ax in enumerate(axes[:count]):
        ax.imshow(test.images[image])
        side = test.images.shape[1]
        for box, label in zip(test.boxes[image], test.labels[image], strict=True):
            if label >= 0:
                _draw(ax, box * side, _OBJECT, 0.7)
        for box, score, label, flag in zip(
            found.boxes[image], found.scores[image], found.labels[image], flags[image], strict=True
        ):
            if score >= _SHOWN_SCORE and flag in (TRUE, FALSE):
                colour = _RIGHT if flag == TRUE else _WRONG
                _draw(ax, box * side, colour, 1.5)
                text = f"{dataset.class_names[label]} {score:.2f}"
                under = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5}
                ax.text(box[1] * side, box[0] * side - 1, text, color=colour, fontsize=5, bbox=under)
    figure.suptitle(f"{dataset.name}, test images: right green, wrong orange, objects white", fontsize=9)
    plots.save(figure, path)


def retrieval_rows(
    images: UInt8[np.ndarray, "n H W 3"],
    labels: Int[np.ndarray, " n"],
    class_names: Sequence[str],
    neighbours: Int[np.ndarray, "n k"],
    path: Path,
    count: int = 6,
) -> None:
    """For some test images, evenly spread: the image, then its nearest others, framed green where the class is the
    same and orange where not."""
    chosen = np.unique(np.linspace(0, len(images) - 1, count).astype(int))
    columns = 1 + neighbours.shape[1]
    figure, axes = _panels(len(chosen), columns)
    for row, query in enumerate(chosen):
        for column, shown in enumerate([query, *neighbours[query]]):
            ax = axes[row * columns + column]
            ax.imshow(images[shown], cmap="gray")
            if column == 0:
                ax.set_title(class_names[int(labels[query])][:24], fontsize=6)
            else:
                side = images.shape[1]
                _draw(ax, np.array([0, 0, side, side]), _RIGHT if labels[shown] == labels[query] else _WRONG, 4.0)
    figure.suptitle("Test images (left) and their nearest others: green of the same class", fontsize=9)
    plots.save(figure, path)


def _panels(rows: int, columns: int) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(1.6 * columns, 1.7 * rows + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.set_axis_off()
    return figure, axes


def _draw(ax: Any, box: np.ndarray, colour: str, width: float) -> None:
    top, left, bottom, right = box
    corner = (left - 0.5, top - 0.5)
    ax.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=colour, linewidth=width))
