"""Pictures of what a run finds: heat maps over images, examples beside their masks, histogram of scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import ndimage

from anomaly.evaluation import Calibration
from common import plots
from common.data.anomaly import AnomalyData

COLUMNS = 8
_CONTOUR = (255, 0, 0)


def heat_map(
    image: UInt8[np.ndarray, "H W 3"], amap: Float[np.ndarray, "H W"], calibration: Calibration, share: float = 0.5
) -> UInt8[np.ndarray, "H W 3"]:
    """The map over the image in colours of the run's stored range, with a red line around what is above the threshold.

    The range is that of the run, not of the image: otherwise every good image would light up somewhere.
    """
    value = calibration.normalised(amap, calibration.pixel_threshold)
    colours = np.asarray(mpl.colormaps["jet"](value))[..., :3] * 255
    mixed = np.rint((1 - share) * image + share * colours).astype(np.uint8)
    above = amap >= calibration.pixel_threshold
    mixed[above & ~ndimage.binary_erosion(above, border_value=1)] = _CONTOUR
    return mixed


def examples(
    dataset: AnomalyData,
    maps: Float[np.ndarray, "n H W"],
    scores: Float[np.ndarray, " n"],
    calibration: Calibration,
    path: Path,
) -> None:
    """Image, mask and heat map of up to eight test images: of every kind of defect the lowest and highest score."""
    chosen = choose_examples(dataset.defects, scores, COLUMNS)
    rows = ["image", "heat map"] if dataset.masks is None else ["image", "mask", "heat map"]
    figure = Figure(figsize=(1.6 * len(chosen), 1.75 * len(rows) + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(chosen), squeeze=False)
    for column, index in enumerate(chosen):
        shown = {"image": dataset.test[index], "heat map": heat_map(dataset.test[index], maps[index], calibration)}
        if dataset.masks is not None:
            shown["mask"] = dataset.masks[index]
        for row, name in enumerate(rows):
            axes[row, column].imshow(shown[name], cmap="gray", vmin=0, vmax=1)
            axes[row, column].set(xticks=[], yticks=[])
            if column == 0:
                axes[row, column].set_ylabel(name)
        score = calibration.normalised(scores[index], calibration.image_threshold)
        axes[0, column].set_title(f"{dataset.defects[index]}\n{score:.2f}", fontsize=8)
    figure.suptitle(f"{dataset.name}; above each: its score, 0.5 = threshold", fontsize=9)
    plots.save(figure, path)


def choose_examples(defects: tuple[str, ...], scores: Float[np.ndarray, " n"], count: int) -> list[int]:
    """Indices of at most `count` images: of each kind in turn the highest score, then the lowest, the second ..."""
    queues = []
    for kind in dict.fromkeys(defects):
        members = [index for index, name in enumerate(defects) if name == kind]
        members.sort(key=lambda index: -scores[index])
        alternating = []
        while members:
            alternating.append(members.pop(0))
            members.reverse()
        queues.append(alternating)
    rounds = [
        queue[place] for place in range(max(map(len, queues), default=0)) for queue in queues if place < len(queue)
    ]
    return sorted(rounds[:count])


def histogram(
    scores: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"], calibration: Calibration, path: Path
) -> None:
    """How often good and defective images have which score, and the threshold between them."""
    figure, axes = plots.figure()
    edges = np.linspace(scores.min(), scores.max() if scores.max() > scores.min() else scores.min() + 1, 21)
    for label, name in enumerate(("good", "defective")):
        if np.any(labels == label):
            axes.hist(scores[labels == label], edges, alpha=0.6, label=name, color=plots.PALETTE[label])
    axes.axvline(calibration.image_threshold, color=plots.PALETTE[6], linestyle="--", label="threshold")
    axes.set_xlabel("image score")
    axes.set_ylabel("test images")
    axes.set_title(f"Threshold: {calibration.fitted_to}")
    axes.legend(frameon=False)
    plots.save(figure, path)


def compressions(names: Sequence[str], body: Sequence[Sequence[Any]], path: Path) -> None:
    """AUROC of images and of pixels over the size of the bank; points of one gamma_d are joined.

    `body`: rows of gamma_c, gamma_d and a value ("" for none) for each of `names`.
    """
    rows = [dict(zip(("gamma_c", "gamma_d", *names), row, strict=True)) for row in body]
    figure, axes = plots.figure()
    styles = {"image_auroc": "o-", "pixel_auroc": "s--"}
    for index, gamma_d in enumerate(sorted({row["gamma_d"] for row in rows})):
        for name, style in styles.items():
            points = [(row["bank_mib"], 100 * row[name]) for row in rows if row["gamma_d"] == gamma_d and name in row]
            if points:
                label = f"{name.split('_')[0]}s, $\\gamma_d$ = {gamma_d}"
                axes.plot(*zip(*points, strict=True), style, label=label, color=plots.PALETTE[index % 7])
    axes.set_xscale("log")
    axes.set_xlabel("memory bank in MiB")
    axes.set_ylabel("AUROC in %")
    if axes.lines:
        axes.legend(frameon=False)
    plots.save(figure, path)
