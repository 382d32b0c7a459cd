import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from common import plots, writers
from common.errors import UserError


def test_lines_have_labels_bands_and_distinct_colours():
    fig, ax = plots.figure()
    plots.lines(ax, [0, 1, 2], {"maml": ([1, 2, 3], [0.1, 0.1, 0.2]), "cxgrad": np.arange(3)}, "step", "accuracy [%]")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "accuracy [%]")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["maml", "cxgrad"]
    assert [line.get_color() for line in ax.lines] == list(plots.PALETTE[:2])
    (band,) = ax.collections
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(3.2)
    assert tuple(fig.get_size_inches()) == (6.4, 4.0)


def test_mosaic_is_rows_of_images_on_white():
    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1).repeat(2, axis=2)
    expected = [[0, 0, 255, 255, 1, 1], [255] * 6, [255] * 6, [2, 2, 255, 255, 255, 255]]
    np.testing.assert_array_equal(np.asarray(plots.mosaic(images, columns=2)), expected)
    coloured = plots.mosaic(np.zeros((2, 4, 5, 3), np.uint8), columns=1, enlarge=3, gap=1)
    assert (coloured.size, coloured.mode) == ((15, 27), "RGB")


def test_more_lines_than_colours_are_told_apart_by_their_style():
    _, ax = plots.figure()
    plots.lines(ax, [0, 1], {f"layer {i}": [i, i] for i in range(18)}, "step", "norm")
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines}) == 18
    assert len({line.get_linestyle() for line in ax.lines[:7]}) == 1


def test_bars_have_names_and_error_bars():
    _, ax = plots.figure(3, 2)
    plots.bars(ax, ["maml", "cxgrad"], [48.0, 51.0], [0.5, float("nan")], "accuracy [%]", title="glyphs")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["maml", "cxgrad"]
    (bars,) = ax.collections[:1]
    drawn = [segment[:, 0].tolist() for segment in bars.get_segments() if len(segment)]
    assert drawn == [[47.5, 48.5]]
    assert [patch.get_width() for patch in ax.patches] == [48.0, 51.0]
    assert (ax.get_xlabel(), ax.get_title()) == ("accuracy [%]", "glyphs")


def test_wrong_length_names_the_series():
    _, ax = plots.figure()
    with pytest.raises(ValueError, match=r"spread of maml has the shape \(2,\), but must have 3 values"):
        plots.lines(ax, [0, 1, 2], {"maml": ([1, 2, 3], [1, 2])}, "x", "y")
    with pytest.raises(ValueError, match="means"):
        plots.bars(ax, ["a"], [1, 2], [0], "y")


def draw(path):
    fig, ax = plots.figure()
    plots.lines(ax, [0, 1], {"a": ([1, 2], [1, 1]), "b": [2, 1]}, "step", "loss")
    plots.save(fig, path)
    return fig


def test_save_writes_both_formats_deterministically_and_empties(tmp_path):
    fig = draw(tmp_path / "new" / "loss.v1.png")
    draw(tmp_path / "again" / "loss.v1.svg")
    draw(tmp_path / "third" / "loss.v1")
    for suffix in (".png", ".svg"):
        first, *others = ((tmp_path / folder / f"loss.v1{suffix}").read_bytes() for folder in ("new", "again", "third"))
        assert all(first == other for other in others)
    with Image.open(tmp_path / "new" / "loss.v1.png") as image:
        assert image.size == (960, 600)
    svg = (tmp_path / "new" / "loss.v1.svg").read_text()
    assert ">loss</text>" in svg
    assert "dc:date" not in svg
    assert fig.axes == []


def test_training_curves_show_each_metric_and_kind(tmp_path):
    writer = writers.JsonlWriter(tmp_path / "metrics.jsonl")
    for step in range(1, 5):
        loss = float("nan") if step == 2 else 1 / step
        writer.write(step, "train", {"loss": loss, "rate": 0.1, "accuracy": 0.5, "norm": 3.0}, {"seconds": 1.0})
    writer.write(4, "evaluate", {"accuracy": 0.6})
    writer.write(4, "final", {"accuracy": 0.7})
    writer.close()
    plots.training_curves(tmp_path / "metrics.jsonl", tmp_path / "figures" / "curves.png")
    svg = (tmp_path / "figures" / "curves.svg").read_text()
    for text in ("loss", "rate", "accuracy", "norm", "train", "evaluate", "final"):
        assert f">{text}</text>" in svg
    assert "seconds" not in svg
    with Image.open(tmp_path / "figures" / "curves.png") as image:
        assert image.size == (1800, 900)
        assert len(set(image.convert("L").tobytes())) > 20


def test_training_curves_without_metrics(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no metrics to draw"):
        plots.training_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_global_style_and_pyplot_are_untouched(tmp_path):
    before = dict(mpl.rcParams)
    draw(tmp_path / "a.png")
    assert dict(mpl.rcParams) == before
    code = "import sys, common.plots; common.plots.figure(); print('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
