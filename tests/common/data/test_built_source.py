"""Sets prepared by our builders: what is read of them, and what can be wrong with them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data import built_source, load, prepare
from common.errors import UserError
from tests.common.data import dummy_sets


def read(data_dir, **changes):
    fields = {"task": "fewshot", "image_size": 16, "channels": 3, "path": str(data_dir), **changes}
    return load("mini_imagenet", **fields)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    dummy_sets.class_folders(folder / "given")
    prepare.prepare("mini_imagenet", folder / "out", str(folder / "given"))
    return folder / "out"


@pytest.fixture
def copy(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    return tmp_path / "data" / "mini_imagenet" / "1.0.0"


def shard(folder: Path, split: str) -> Path:
    (file,) = folder.glob(f"*-{split}.array_record-*")
    return file


def test_pictures_are_resized_as_pillow_does_it_without_cropping(tmp_path):
    random = np.random.default_rng(0)
    dummy_sets.class_folders(tmp_path / "given")
    picture = Image.fromarray(random.integers(0, 256, (50, 70, 3), np.uint8))
    picture.save(tmp_path / "given" / "test" / "n06" / "0.png")
    prepare.prepare("mini_imagenet", tmp_path / "out", str(tmp_path / "given"))
    image = read(tmp_path / "out", image_size=84).splits["test"].images[0]
    np.testing.assert_array_equal(image, np.asarray(picture.resize((84, 84), Image.Resampling.BICUBIC)))
    grey = read(tmp_path / "out", image_size=32, channels=1).splits["test"].images[0]
    expected = picture.convert("L").resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(grey[..., 0], np.asarray(expected))


def test_every_set_says_where_it_is_from_and_can_be_built():
    for name, entry in built_source.ENTRIES.items():
        builder = prepare.load_builder(name)
        assert builder.name == name
        assert all((entry.licence, entry.source, builder.description, builder.homepage, builder.layouts))
        fewshot = {"train", "validation", "test"}
        both = {"train", "test"} if entry.classes else set()  # MVTec AD has no classes
        assert set(entry.classes) == (fewshot if builder.disjoint_classes else both)


def test_prepared_as_tfrecord(copy):
    info = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match=r"prepared as tfrecord, .*array_record is needed: prepare it once, by `pyth"):
        read(copy.parent.parent)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_missing_and_damaged_shards(split, copy):
    file = shard(copy, split)
    file.write_bytes(b"nonsense" * 100)
    with pytest.raises(UserError, match=f"split '{split}' in .* cannot be read .*prepare the set anew"):
        read(copy.parent.parent)
    file.unlink()
    with pytest.raises(UserError, match=rf"incomplete, file .*-{split}.array_record-00000-of-00001 is missing"):
        read(copy.parent.parent)


def test_a_class_in_two_splits(tmp_path, monkeypatch):
    """As another builder, or an older one, could have left it."""
    dummy_sets.class_folders(tmp_path / "given")
    (tmp_path / "given" / "test" / "n07").rename(tmp_path / "given" / "test" / "n01")
    monkeypatch.setattr(prepare.load_builder("mini_imagenet"), "disjoint_classes", False)
    prepare.prepare("mini_imagenet", tmp_path / "out", str(tmp_path / "given"))
    with pytest.raises(UserError, match="class 'n01' of data set 'mini_imagenet' is in both 'train' and 'test'"):
        read(tmp_path / "out")


def test_options_and_tasks(prepared):
    with pytest.raises(UserError, match="'mini_imagenet' has no option 'x'; its options are: none"):
        read(prepared, options={"x": 1})
    with pytest.raises(UserError, match="'mini_imagenet' cannot be used for classification, only for fewshot"):
        read(prepared, task="classification")


def test_a_set_prepared_anew_is_not_taken_for_the_old_one(copy):
    before = read(copy.parent.parent).splits["train"].images
    given = copy.parent.parent / "given"
    dummy_sets.class_folders(given)
    for file in given.glob("train/*/*.png"):
        file.write_bytes(dummy_sets.encoded(99, int(file.stem)))
    shutil.rmtree(copy)
    prepare.prepare("mini_imagenet", copy.parent.parent, str(given))
    assert (read(copy.parent.parent).splits["train"].images != before).any()
