"""Pictures of an embedding procedure (IEP): where images are, what moves them on, and who is whose neighbour."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from common import plots
from distill.iep import Procedure

NEIGHBOURS = 5
SIMILAR = 0.1  # an image's colour is similar to that of the nearest tenth of all others
EDGES = 3  # drawn per image: its strongest affinities, its largest alterations
QUERIES = 6


def nearest(affinity: Float[np.ndarray, "N N"], k: int) -> Int[np.ndarray, "N k"]:
    """The k images most affine to each image, best first, itself left out; of equal ones the first."""
    alone = np.where(np.eye(len(affinity), dtype=bool), -np.inf, affinity)
    return np.argsort(-alone, axis=1, kind="stable")[:, :k]


def similar_colours(images: UInt8[np.ndarray, "N H W c"]) -> Bool[np.ndarray, "N N"]:
    """True at (i, j) if j is among the tenth of all other images whose mean colour is nearest to that of i."""
    colour = images.reshape(len(images), -1, images.shape[-1]).mean(1)
    distance = np.linalg.norm(colour[:, None] - colour[None], axis=-1)
    count = max(1, round(SIMILAR * (len(images) - 1)))
    found = np.zeros(distance.shape, bool)
    np.put_along_axis(found, nearest(-distance, count), True, axis=1)
    return found


def neighbour_shares(
    procedure: Procedure, images: UInt8[np.ndarray, "N H W c"], labels: Int[np.ndarray, " N"], k: int = NEIGHBOURS
) -> dict[str, float]:
    """{"neighbours/class<i>", "neighbours/colour<i>"}: the share of the k nearest images at point i that have the same
    class, and that have a similar mean colour (0.1 by chance)."""
    alike = {"class": labels[:, None] == labels[None], "colour": similar_colours(images)}
    shares = {}
    for i, affinity in enumerate(procedure.affinity):
        chosen = nearest(np.asarray(affinity), min(k, len(labels) - 1))
        for name, matrix in alike.items():
            shares[f"neighbours/{name}{i}"] = float(np.take_along_axis(matrix, chosen, axis=1).mean())
    return shares


def embedding_procedure(
    procedure: Procedure,
    images: UInt8[np.ndarray, "N H W c"],
    labels: Int[np.ndarray, " N"],
    shown: int,
    folder: Path,
) -> dict[str, float]:
    """Draw folder/embedding_procedure and folder/neighbours (PNG and SVG); return `neighbour_shares` of all images.

    Args:
      shown: images drawn, the first ones; the shares are those of all N.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    positions, affinity, alteration = ([np.asarray(x) for x in part] for part in procedure)
    draw_procedure(
        [x[:shown] for x in positions],
        [x[:shown, :shown] for x in affinity],
        [x[:shown, :shown] for x in alteration],
        images[:shown],
        labels[:shown],
        folder / "embedding_procedure",
    )
    draw_neighbours(affinity[0], affinity[-1], images, labels, folder / "neighbours")
    return neighbour_shares(procedure, images, labels)


def draw_procedure(
    positions: list[Float[np.ndarray, "n 2"]],
    affinity: list[Float[np.ndarray, "n n"]],
    alteration: list[Float[np.ndarray, "n n"]],
    images: UInt8[np.ndarray, "n H W c"],
    labels: Int[np.ndarray, " n"],
    path: Path,
) -> None:
    """One panel a point: images at their first two coordinates, framed in the colour of their class.

    Grey edges join each image with its strongest affinities; at all points but the last, red (grows) and blue (shrinks)
    edges are the largest alterations towards the next point.
    """
    classes = np.unique(labels)
    colours = {c: mpl.colormaps["hsv"](i / len(classes)) for i, c in enumerate(classes)}
    with mpl.rc_context(plots.STYLE):
        figure = Figure(figsize=(4.2 * len(positions), 4.4))
        FigureCanvasAgg(figure)
        for i, (ax, place) in enumerate(
            zip(figure.subplots(1, len(positions), squeeze=False)[0], positions, strict=True)
        ):
            _edges(ax, place, affinity[i], "Greys")
            if i < len(alteration):
                change = alteration[i] - alteration[i].mean()
                _edges(ax, place, np.maximum(change, 0), "Reds")
                _edges(ax, place, np.maximum(-change, 0), "Blues")
            ax.scatter(*place.T, s=1)
            for image, xy, label in zip(images, place, labels, strict=True):
                _thumbnail(ax, image, xy, colours[label])
            ax.set(title=f"point {i}", xlabel="first component", ylabel="second component")
            ax.margins(0.1)
        figure.suptitle("Embedding procedure; frame = class, grey = affinity, red and blue = alteration", fontsize=9)
    plots.save(figure, path)


def _edges(ax: Axes, place: Float[np.ndarray, "n 2"], strength: Float[np.ndarray, "n n"], colours: str) -> None:
    """Lines from each image to those of the largest strength, darker for larger ones."""
    chosen = nearest(strength, min(EDGES, len(place) - 1))
    ends = np.stack([np.repeat(np.arange(len(place)), chosen.shape[1]), chosen.ravel()], axis=1)
    values = strength[ends[:, 0], ends[:, 1]]
    shade = np.clip(values / max(float(np.abs(values).max()), 1e-12), 0, 1)
    rgba = mpl.colormaps[colours](0.2 + 0.6 * shade)
    rgba[:, 3] = 0.5 * shade
    ax.add_collection(LineCollection(list(place[ends]), colors=list(map(tuple, rgba)), linewidths=0.7, zorder=0))


def _thumbnail(ax: Axes, image: UInt8[np.ndarray, "H W c"], xy: Float[np.ndarray, "2"], colour: tuple) -> None:
    box = OffsetImage(_rgb(image), zoom=11 / image.shape[0])
    frame = {"edgecolor": colour, "linewidth": 1.2}
    ax.add_artist(AnnotationBbox(box, (float(xy[0]), float(xy[1])), pad=0.1, bboxprops=frame))


def _rgb(image: UInt8[np.ndarray, "H W c"]) -> UInt8[np.ndarray, "H W 3"]:
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]


def draw_neighbours(
    first: Float[np.ndarray, "N N"],
    last: Float[np.ndarray, "N N"],
    images: UInt8[np.ndarray, "N H W c"],
    labels: Int[np.ndarray, " N"],
    path: Path,
) -> None:
    """Images of several classes with their nearest ones at the first and at the last point; same class: green."""
    queries = np.unique(labels, return_index=True)[1][:QUERIES]
    k = min(NEIGHBOURS, len(labels) - 1)
    with mpl.rc_context(plots.STYLE):
        figure = Figure(figsize=(0.75 * (2 * k + 1), 0.8 * len(queries) + 0.5))
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(queries), 2 * k + 1, squeeze=False)
        for row, query in zip(axes, queries, strict=True):
            chosen = [query, *nearest(first, k)[query], *nearest(last, k)[query]]
            for ax, index in zip(row, chosen, strict=True):
                ax.imshow(_rgb(images[index]))
                ax.set(xticks=[], yticks=[])
                ax.grid(visible=False)
                colour = "0.4" if index == query else "tab:green" if labels[index] == labels[query] else "tab:red"
                for spine in ax.spines.values():
                    spine.set(visible=True, edgecolor=colour, linewidth=2)
        for column, title in ((0, "image"), (1, "nearest at the first point"), (1 + k, "nearest at the last point")):
            axes[0, column].set_title(title, fontsize=8, loc="left")
    plots.save(figure, path)
