import shutil

import numpy as np
import pytest
from PIL import Image

from common.data import load
from common.errors import UserError
from tests.common.data.conftest import write_class_folders, write_picture


def read(path, task="classification", image_size=8, channels=3, seed=0, **options):
    path = None if path is None else str(path)
    return load("folder", task=task, image_size=image_size, channels=channels, path=path, seed=seed, options=options)


def content(split):
    """(class name, first pixel) of each image: the colour tells where an image came from."""
    return [
        (split.class_names[label], int(image[0, 0, 0])) for image, label in zip(split.images, split.labels, strict=True)
    ]


def test_classification_splits_instances(tmp_path):
    write_class_folders(tmp_path, ["b", "a", "c"], 10)
    data = read(tmp_path)
    assert data.splits["train"].class_names == data.splits["test"].class_names == ("a", "b", "c")
    train, test = content(data.splits["train"]), content(data.splits["test"])
    assert (len(train), len(test)) == (24, 6)
    assert not set(train) & set(test)
    assert {value // 10 for label, value in train + test if label == "b"} == {0}
    assert content(read(tmp_path).splits["test"]) == test
    assert content(read(tmp_path, seed=1).splits["test"]) != test


def test_fewshot_splits_classes(tmp_path):
    write_class_folders(tmp_path, [f"class {index:02d}" for index in range(25)], 2)
    data = read(tmp_path, task="fewshot")
    names = {split: set(part.class_names) for split, part in data.splits.items()}
    assert {split: len(part) for split, part in names.items()} == {"train": 15, "validation": 5, "test": 5}
    assert len(set().union(*names.values())) == 25
    for split in data.splits.values():
        assert list(split.class_names) == sorted(split.class_names)
        np.testing.assert_array_equal(split.labels, np.repeat(np.arange(split.num_classes), 2))
    sizes = {k: v.num_classes for k, v in read(tmp_path, task="fewshot", min_classes_per_split=1).splits.items()}
    assert sizes == {"train": 16, "validation": 4, "test": 5}


def test_split_folders(tmp_path):
    for row, (split, labels) in enumerate((("train", ["a", "b"]), ("val", ["c", "d"]), ("test", ["e", "f"]))):
        write_class_folders(tmp_path / split, labels, 3, first=50 * row)
    data = read(tmp_path, task="fewshot", min_classes_per_split=2)
    assert {name: split.class_names for name, split in data.splits.items()} == {
        "train": ("a", "b"),
        "validation": ("c", "d"),
        "test": ("e", "f"),
    }


def test_split_folders_without_validation(tmp_path):
    for split, first in (("train", 0), ("test", 50)):
        write_class_folders(tmp_path / split, ["a", "b"], 3, first)
    assert set(read(tmp_path).splits) == {"train", "test"}


def test_formats_modes_and_sizes(tmp_path):
    deep = np.full((9, 9), 0x8000, np.uint16)
    for label in ("a", "b"):
        write_picture(tmp_path / label / "1.PNG", 128, (30, 7))
        Image.fromarray(deep).save(tmp_path / label / "2.png")
        for index, suffix in enumerate((".jpg", ".jpeg", ".bmp", ".webp")):
            Image.new("L", (9, 9), 128).save(tmp_path / label / f"{index + 3}{suffix}")
        Image.new("RGBA", (9, 9), (128, 128, 128, 0)).save(tmp_path / label / "7.png")
        (tmp_path / label / "notes.txt").write_text("not a picture")
    for channels in (1, 3):
        splits = read(tmp_path, channels=channels).splits
        images = np.concatenate([split.images for split in splits.values()])
        assert images.shape == (14, 8, 8, channels)
        assert abs(images.astype(int) - 128).max() <= 2


def test_bad_folders(tmp_path):
    with pytest.raises(UserError, match=r"set --config.dataset_path="):
        read(None)
    with pytest.raises(UserError, match=r"nowhere \(--config.dataset_path\) does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds 0 class folders"):
        read(tmp_path)
    write_class_folders(tmp_path, ["a"], 3)
    with pytest.raises(UserError, match="holds 1 class folders"):
        read(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds 0 pictures \(.png, .*at least 2 are needed"):
        read(tmp_path)
    write_class_folders(tmp_path, ["empty"], 3)
    with pytest.raises(UserError, match=r"a holds 3 pictures .*at least 16"):
        read(tmp_path, min_images_per_class=16)
    with pytest.raises(UserError, match=r"holds 2 classes, .* at least 5 need 15"):
        read(tmp_path, task="fewshot")
    with pytest.raises(UserError, match="'folder' has no option 'shots'"):
        read(tmp_path, shots=1)


@pytest.mark.parametrize("damage", ["truncated", "nonsense", "folder"])
def test_unreadable_picture_is_named(tmp_path, damage):
    write_class_folders(tmp_path, ["a", "b"], 3)
    bad = tmp_path / "b" / "001.png"
    content = bad.read_bytes()
    bad.unlink()
    if damage == "folder":
        bad.mkdir()
    else:
        bad.write_bytes(content[:50] if damage == "truncated" else b"nonsense")
    with pytest.raises(UserError, match=r"b/001.png cannot be read"):
        read(tmp_path)


def test_all_unreadable_pictures_are_counted(tmp_path):
    write_class_folders(tmp_path, ["a", "b"], 5)
    for index in (0, 2, 3):
        (tmp_path / "a" / f"{index:03d}.png").write_bytes(b"nonsense %d" % index)
    with pytest.raises(UserError, match=r"a/00\d.png cannot be read \(.*\)(, nor can \d other\(s\))?:"):
        read(tmp_path)


def test_same_picture_in_two_splits(tmp_path):
    for split, first in (("train", 0), ("test", 50)):
        write_class_folders(tmp_path / split, ["a", "b"], 3, first)
    read(tmp_path)
    shutil.copy(tmp_path / "train" / "b" / "000.png", tmp_path / "test" / "a" / "copy.png")
    with pytest.raises(UserError, match=r"train/b/000.png and .*test/a/copy.png are the same, so 'train' and 'test'"):
        read(tmp_path)


def test_same_picture_twice_in_a_class(tmp_path):
    write_class_folders(tmp_path, [f"class {index:02d}" for index in range(15)], 3)
    for label in ("class 03", "class 05"):
        shutil.copy(tmp_path / label / "001.png", tmp_path / label / "copy.png")
    message = r"pictures .* and .* are the same \(and so are 1 other pairs\), so an episode may query its support"
    with pytest.raises(UserError, match=message):
        read(tmp_path, task="fewshot")


@pytest.mark.parametrize(
    ("task", "folders", "sentence"),
    [
        ("classification", {"train": "ab"}, "test is missing beside .*train: classification needs it"),
        ("fewshot", {"train": "ab", "test": "cd"}, "validation is missing beside"),
        ("fewshot", {"train": "ab", "val": "cd", "test": "be"}, "class 'b' is in both 'train' and 'test'"),
        ("fewshot", {"train": "ab", "val": "cd", "test": "de"}, "class 'd' is in both 'validation' and 'test'"),
        ("classification", {"train": "ab", "test": "abc"}, "class 'c' is in only one of 'train' and 'test'"),
        (
            "fewshot",
            {"train": "abcdef", "val": "gh", "test": "ijklm"},
            "'validation' .* 2 classes, .* at least 5",
        ),
    ],
)
def test_classes_that_do_not_fit_the_task(tmp_path, task, folders, sentence):
    for split, labels in folders.items():
        write_class_folders(tmp_path / split, list(labels), 2)
    with pytest.raises(UserError, match=sentence):
        read(tmp_path, task=task)
