"""One look for every figure, drawn without pyplot so that nothing global is changed."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from common import writers
from common.errors import UserError

Numbers = Sequence[float | int] | np.ndarray

# Okabe and Ito, "Color universal design", 2008: told apart with any colour vision.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 9.0,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "leanvision",  # the same figure is the same file
}
_LINES = ("-", "--", ":", "-.")  # the next one whenever the colours are used up
_KINDS = {"train": "-", "evaluate": "o-", "final": "*"}


def figure(width: float | int = 6.4, height: float | int = 4.0) -> tuple[Figure, Axes]:
    """Return a figure of this size in inches with one pair of axes."""
    fig, axes = _grid(1, 1, width, height)
    return fig, axes[0]


def lines(
    ax: Axes,
    x: Numbers,
    series: Mapping[str, Any],
    xlabel: str,
    ylabel: str,
    *,
    title: str = "",
    marker: str = "",
) -> None:
    """Draw one line per series over the same `x` `[n]`.

    Args:
      series: name -> y `[n]`, or the tuple (y, spread), both `[n]`, for a band of y +- spread.

    Raises:
      ValueError: a series whose length is not that of x.
    """
    x = np.asarray(x, np.float64)
    with mpl.rc_context(STYLE):
        for i, (name, value) in enumerate(series.items()):
            y, spread = value if isinstance(value, tuple) else (value, None)
            y = _same_length(name, y, len(x))
            style = _LINES[i // len(PALETTE) % len(_LINES)]
            (line,) = ax.plot(x, y, label=name, marker=marker, linestyle=style)
            if spread is not None:
                spread = _same_length(f"spread of {name}", spread, len(x))
                ax.fill_between(x, y - spread, y + spread, color=line.get_color(), alpha=0.2, linewidth=0)
        _label(ax, xlabel, ylabel, title)


def bars(ax: Axes, names: Sequence[str], means: Numbers, spreads: Numbers, xlabel: str, *, title: str = "") -> None:
    """Draw one bar per name, from top to bottom: as long as the mean, with an error bar of +- spread, none for nan.

    Raises:
      ValueError: not as many means or spreads as names.
    """
    lengths = _same_length("means", means, len(names))
    errors = _same_length("spreads", spreads, len(names))
    positions = np.arange(len(names))
    with mpl.rc_context(STYLE):
        ax.barh(positions, lengths, xerr=errors, capsize=3.0)
        ax.set_yticks(positions, names)
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        _label(ax, xlabel, "", title)


def save(fig: Figure, path: Path) -> None:
    """Write `path` as PNG (150 dpi) and SVG side by side, making the folder; then empty the figure.

    Whatever suffix of the two `path` has, both are written. The same figure gives the same bytes.
    """
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".png", ".svg") else path
    stem.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        fig.savefig(stem.with_name(stem.name + ".png"), dpi=150, metadata={"Software": None})
        fig.savefig(stem.with_name(stem.name + ".svg"), metadata={"Date": None, "Creator": None})
    fig.clear()


def mosaic(images: UInt8[np.ndarray, "n h w c"], columns: int, enlarge: int = 1, gap: int = 2) -> Image.Image:
    """Images of one size in rows of `columns` on white, each pixel `enlarge` wide; notebooks show it as it is."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for place, image in enumerate(images):
        top, left = place // columns * (height + gap), place % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    large = canvas.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    return Image.fromarray(large[..., 0] if channels == 1 else large)


def training_curves(jsonl_path: Path, out_path: Path) -> None:
    """Draw every metric of a `metrics.jsonl` against the step, one panel per metric, one line per kind.

    Wall-time values are left out; a non-finite value is a gap.

    Raises:
      UserError: the file is missing, broken, or holds no metrics yet.
    """
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for line in writers.without_wall(writers.read(jsonl_path)):
        for name in line.keys() - {"step", "kind"}:
            value = float(line[name])
            point = line["step"], value if math.isfinite(value) else math.nan
            curves.setdefault(name, {}).setdefault(line["kind"], []).append(point)
    if not curves:
        raise UserError(f"{jsonl_path} holds no metrics to draw; train at least until the first log.")
    columns = min(3, len(curves))
    rows = math.ceil(len(curves) / columns)
    fig, axes = _grid(rows, columns, 4.0 * columns, 3.0 * rows)
    with mpl.rc_context(STYLE):
        for ax, name in zip(axes, sorted(curves), strict=False):
            for kind in sorted(curves[name], key=[*_KINDS, *sorted(curves[name])].index):
                steps, values = zip(*curves[name][kind], strict=True)
                ax.plot(steps, values, _KINDS.get(kind, "-"), label=kind, markersize=4.0)
            _label(ax, "step", name, "")
        for ax in axes[len(curves) :]:
            fig.delaxes(ax)
    save(fig, out_path)


def _grid(rows: int, columns: int, width: float | int, height: float | int) -> tuple[Figure, list[Axes]]:
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(width, height))
        FigureCanvasAgg(fig)
        return fig, list(fig.subplots(rows, columns, squeeze=False).flat)


def _label(ax: Axes, xlabel: str, ylabel: str, title: str) -> None:
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.set_title(title)
    entries = len(ax.get_legend_handles_labels()[1])
    if entries > 1:
        ax.legend(ncols=1 + entries // 10)


def _same_length(name: str, values: Any, n: int) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.shape != (n,):
        raise ValueError(f"{name} has the shape {array.shape}, but must have {n} values, one for each x or name.")
    return array
