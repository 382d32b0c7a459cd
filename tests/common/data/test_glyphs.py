import hashlib
import subprocess
import sys
import time
import unicodedata

import numpy as np
import pytest

from common.data import load
from common.data.glyph_inventory import MIN_STYLES, SAME_SHAPE, SCRIPTS_OF_SPLIT, STYLES, inventory, normalised_shape
from common.data.glyph_rendering import DIFFICULTIES, render_instances
from common.errors import UserError

SMALL = {"max_classes": 6, "instances_per_class": 20}


def few(options=None, image_size=20, channels=1, seed=0):
    options = {**SMALL, **(options or {})}
    return load("glyphs", task="fewshot", image_size=image_size, channels=channels, seed=seed, options=options)


def digest(data):
    whole = hashlib.sha256()
    for name, split in sorted(data.splits.items()):
        whole.update(repr((name, split.class_names)).encode())
        whole.update(split.images.tobytes() + split.labels.tobytes())
    return whole.hexdigest()


def test_inventory_is_large_and_by_script():
    counts = {split: sum(glyph.split == split for glyph in inventory()) for split in SCRIPTS_OF_SPLIT}
    assert counts["train"] > 700
    assert counts["validation"] > 100
    assert counts["test"] > 150
    for glyph in inventory():
        assert unicodedata.name(chr(glyph.codepoint)).split(" ")[0] in SCRIPTS_OF_SPLIT[glyph.split]
        assert MIN_STYLES <= len(glyph.styles) <= len(STYLES)


def test_no_character_is_missing_in_its_font():
    from fontTools.ttLib import TTFont

    from common.data.glyph_inventory import _font_folder

    for style, file in enumerate(STYLES):
        with TTFont(_font_folder() / file) as font:
            cmap, glyph_set = font.getBestCmap(), font.getGlyphSet()
            for glyph in inventory():
                if style in glyph.styles:
                    assert cmap[glyph.codepoint] in glyph_set
                    assert cmap[glyph.codepoint] != ".notdef"


@pytest.mark.parametrize("style", range(4))
def test_no_look_alikes_across_splits(style):
    glyphs = [glyph for glyph in inventory() if style in glyph.styles]
    shapes = np.stack([normalised_shape(glyph.codepoint, style) for glyph in glyphs])
    splits = np.array([glyph.split for glyph in glyphs])
    similarity = np.where(splits[:, None] != splits[None], shapes @ shapes.T, 0)
    assert 0.8 < similarity.max() < SAME_SHAPE + 0.005  # the whole numbers used for choosing are rounded


def test_fewshot_splits_hold_different_classes_in_contiguous_runs():
    data = few()
    names = [split.class_names for split in data.splits.values()]
    assert len(set().union(*names)) == sum(map(len, names)) == 18
    for split in data.splits.values():
        assert list(split.class_names) == sorted(split.class_names)
        np.testing.assert_array_equal(split.labels, np.repeat(np.arange(6), 20))


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
@pytest.mark.parametrize(("image_size", "channels"), [(16, 1), (28, 3), (128, 1)])
def test_shapes_and_contrast(difficulty, image_size, channels):
    data = few({"difficulty": difficulty, "max_classes": 2}, image_size, channels)
    images = data.splits["test"].images
    assert images.shape == (40, image_size, image_size, channels)
    assert np.all(np.ptp(images.reshape(40, -1), axis=1) > 60)  # no blank image


def test_no_character_is_cut_off():
    strong = {"difficulty": "easy", "rotation": 45.0, "scale_max": 1.5, "translation": 0.5, "shear": 0.5}
    images = few(strong, image_size=32).splits["test"].images
    border = np.concatenate([images[:, [0, -1]].ravel(), images[:, :, [0, -1]].ravel()])
    assert border.max() < 128  # at most the antialiased rim of the ink


def test_same_arrays_in_another_process(tmp_path):
    code = "from tests.common.data.test_glyphs import digest, few; print(digest(few({'difficulty': 'hard'}, 18, 3)))"
    here = digest(few({"difficulty": "hard"}, 18, 3))
    environment = {"LEANVISION_CACHE": str(tmp_path), "PYTHONHASHSEED": "1", "PATH": ""}
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == here


def test_cached_arrays_equal_fresh_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("LEANVISION_CACHE", str(tmp_path))
    fresh = digest(few())
    (file,) = (tmp_path / "data").glob("glyphs-fewshot*.npz")
    assert digest(few()) == fresh
    file.write_bytes(file.read_bytes()[:1000])
    assert digest(few()) == fresh


def test_instance_depends_on_seed_class_and_number_only():
    glyph, other = inventory()[10], inventory()[11]
    hard = DIFFICULTIES["hard"]
    images = render_instances(glyph, range(6), 24, 3, 5, hard)
    np.testing.assert_array_equal(render_instances(glyph, [4, 2], 24, 3, 5, hard), images[[4, 2]])
    assert not np.array_equal(render_instances(glyph, [4], 24, 3, 6, hard), images[[4]])
    assert not np.array_equal(render_instances(other, [4], 24, 3, 5, hard), images[[4]])
    assert len(np.unique(images.reshape(6, -1), axis=0)) == 6


def test_difficulties_are_ordered():
    def spread(difficulty):
        images = few({"difficulty": difficulty}).splits["train"].images.astype(float)
        return images.reshape(6, 20, -1).std(axis=1).mean()

    assert spread("easy") < spread("medium") < spread("hard")


def test_named_difficulty_equals_its_strengths():
    strengths = {name: getattr(DIFFICULTIES["hard"], name) for name in DIFFICULTIES["hard"].__dataclass_fields__}
    assert digest(few({"difficulty": "easy", **strengths})) == digest(few({"difficulty": "hard"}))


def test_classification_shares_classes_but_no_instance():
    options = {"num_classes": 5, "train_per_class": 8, "validation_per_class": 3, "test_per_class": 4}
    data = load("glyphs", task="classification", image_size=20, channels=1, options=options)
    assert {name: len(split.images) for name, split in data.splits.items()} == {
        "train": 40,
        "validation": 15,
        "test": 20,
    }
    assert len({split.class_names for split in data.splits.values()}) == 1
    every = np.concatenate([split.images for split in data.splits.values()]).reshape(75, -1)
    assert len(np.unique(every, axis=0)) == 75
    del options["validation_per_class"]
    data = load("glyphs", task="classification", image_size=20, channels=1, options=options)
    assert set(data.splits) == {"train", "test"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"difficulty": "meduim"}, r"one of easy, medium, hard, but is 'meduim' \(did you mean 'medium'\?\)"),
        ({"difficulty": ["easy"]}, "one of easy, medium, hard"),
        ({"instances_per_class": 19}, r"'instances_per_class' .* must lie in 20\.\.10000, but is 19"),
        ({"rotatoin": 3.0}, r"has no option 'rotatoin' \(did you mean 'rotation'\?\)"),
        ({"rotation": "3"}, "'rotation' .* must be float, but is '3'"),
        ({"noise": float("nan")}, r"'noise' .* must lie in 0\.\.1, but is nan"),
        ({"scale_min": 1.2}, "'scale_max' .* at least scale_min = 1.2, but is 1.1"),
        ({"num_classes": 5}, "has no option 'num_classes'"),
    ],
)
def test_bad_options(options, sentence):
    with pytest.raises(UserError, match=sentence):
        few(options)


def test_more_errors():
    with pytest.raises(UserError, match="16 to 128 pixels a side, but image_size is 130"):
        few(image_size=130)
    with pytest.raises(UserError, match="rendered, not read: leave dataset_path empty instead of 'x'"):
        load("glyphs", task="fewshot", image_size=28, channels=1, path="x")
    with pytest.raises(UserError, match=r"'num_classes' .* must be at most \d+, .* but is 9999"):
        load("glyphs", task="classification", image_size=28, channels=1, options={"num_classes": 9999})


@pytest.mark.slow
def test_whole_default_set_is_rendered_fast(tmp_path, monkeypatch):
    monkeypatch.setenv("LEANVISION_CACHE", str(tmp_path))
    start = time.process_time()
    data = load("glyphs", task="fewshot", image_size=28, channels=1)
    assert time.process_time() - start < 30
    assert len(data.splits["train"].images) == 24 * data.num_classes
