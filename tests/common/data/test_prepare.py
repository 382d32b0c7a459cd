"""From every tree that a data set is published in to few-shot splits, without TensorFlow and without a network."""

import io
import pickle
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from common.data import load, prepare
from common.data.builders.cifar_fs import TEST, VALIDATION
from common.data.builders.cub_200_2011 import split_of
from common.errors import UserError
from tests.common.data import dummy_sets
from tests.common.data.dummy_sets import TREES

NAMES = {
    "mini_imagenet": {"train": ("n01", "n02", "n03"), "validation": ("n04", "n05"), "test": ("n06", "n07")},
    "cub_200_2011": {
        "train": ("001.Bird_1", "003.Bird_3", "005.Bird_5", "007.Bird_7"),
        "validation": ("002.Bird_2", "006.Bird_6"),
        "test": ("004.Bird_4", "008.Bird_8"),
    },
    "cifar_fs": {"train": ("apple", "bee", "tank"), "validation": ("lamp", "otter"), "test": ("baby", "worm")},
}
NUMBERED = {"train": 3, "validation": 2, "test": 2}
ALL = [(name, tree) for name, trees in TREES.items() for tree in trees]


def run(capsys, *arguments):
    """(exit code, standard output, standard error) of the command."""
    code = prepare.main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def read(name, data_dir, **changes):
    return load(name, **{"task": "fewshot", "image_size": 84, "channels": 3, "path": str(data_dir), **changes})


@pytest.mark.parametrize(("name", "tree"), ALL)
def test_every_tree_becomes_the_same_splits(name, tree, tmp_path, capsys):
    (tmp_path / "given").mkdir()
    TREES[name][tree](tmp_path / "given")
    flags = (f"--name={name}", f"--manual_dir={tmp_path / 'given'}", f"--data_dir={tmp_path / 'out'}")
    code, out, _ = run(capsys, *flags)
    assert code == 0
    assert f"{name} is prepared in {tmp_path / 'out' / name}" in out
    assert "train: 3 classes, 12 pictures, 4 a class" in out or name == "cub_200_2011"
    assert "Careful: the published split has " in out  # the dummies are smaller
    assert "tensorflow" not in sys.modules

    data = read(name, tmp_path / "out")
    names = {split: part.class_names for split, part in data.splits.items()}
    numbered = name == "tiered_imagenet" and tree != "folders"
    if numbered:
        assert {split: len(part) for split, part in names.items()} == NUMBERED
        assert names["validation"] == ("val class 0000", "val class 0001")
    else:
        assert names == NAMES["mini_imagenet" if tree == "folders" else name]
    for part in data.splits.values():
        np.testing.assert_array_equal(part.labels, np.repeat(np.arange(part.num_classes), 4))
        greens = part.images[:, 40, 40, 1].reshape(-1, 4)
        if tree == "cifar100":  # which tensorflow-datasets has shuffled
            greens = np.sort(greens)
        np.testing.assert_array_equal(greens, np.tile([0, 10, 20, 30], (part.num_classes, 1)))
        assert (part.images[:, 40, 40, 2] == 200).all()  # blue is blue
    if name != "cifar_fs":
        reds = np.concatenate([part.images[:, 0, 0, 0] for part in data.splits.values()])
        labels = [int(name[1:3]) for part in names.values() for name in part if not numbered]
        if numbered:  # in the order of the files, which is not that of the names
            labels = [int(name[1:]) for part in dummy_sets.CLASSES.values() for name in part]
        np.testing.assert_array_equal(reds, np.repeat(labels, 4))
    code, out, _ = run(capsys, *flags)
    assert (code, "is prepared already in" in out) == (0, True)


def test_splits_of_the_literature():
    assert (len(VALIDATION), len(TEST), len(VALIDATION & TEST)) == (16, 20, 0)
    birds = [split_of(number) for number in range(1, 201)]
    assert [birds.count(split) for split in ("train", "validation", "test")] == [100, 50, 50]
    assert birds[:4] == ["train", "validation", "train", "test"]


def test_published_moments_are_used_where_there_are_any(tmp_path):
    dummy_sets.cifar_archive(tmp_path)
    prepare.prepare("cifar_fs", tmp_path / "out", str(tmp_path))
    data = read("cifar_fs", tmp_path / "out", image_size=32)
    assert data.mean == (0.5071, 0.4847, 0.4408)
    assert data.std == (0.2675, 0.2565, 0.2761)
    grey = read("cifar_fs", tmp_path / "out", image_size=16, channels=1)
    assert grey.splits["test"].images.shape == (8, 16, 16, 1)
    assert grey.mean == pytest.approx((np.mean(grey.splits["train"].images) / 255,))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(protocol, tmp_path):
    dummy_sets.pickled_cache(tmp_path, protocol)
    folder = prepare.prepare("mini_imagenet", tmp_path / "out", str(tmp_path))
    assert (folder / "dataset_info.json").is_file()


def test_archive(tmp_path, capsys):
    dummy_sets.birds(tmp_path)
    archive = shutil.make_archive(str(tmp_path / "CUB_200_2011"), "gztar", tmp_path, "CUB_200_2011")
    code, _, error = run(capsys, "--name=cub_200_2011", f"--manual_dir={archive}", f"--data_dir={tmp_path / 'out'}")
    assert code == 0, error
    assert read("cub_200_2011", tmp_path / "out").splits["train"].num_classes == 4
    assert [entry.name for entry in (tmp_path / "out").iterdir() if "unpacked" in entry.name] == []


def test_decoded_pictures_are_kept(tmp_path, monkeypatch):
    from common.data import built_source

    dummy_sets.class_folders(tmp_path)
    prepare.prepare("mini_imagenet", tmp_path / "out", str(tmp_path))
    first = read("mini_imagenet", tmp_path / "out", image_size=16)
    monkeypatch.setattr(built_source, "_picture", pytest.fail)
    again = read("mini_imagenet", tmp_path / "out", image_size=16)
    for split in first.splits:
        np.testing.assert_array_equal(first.splits[split].images, again.splits[split].images)


# --- what can be wrong ----------------------------------------------------------------------------------------------


def refused(capsys, message, *arguments):
    code, _, error = run(capsys, *arguments)
    assert code == 2
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    assert message in error, error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --name; --help lists the flags."),
        (["--name=mini_imagnet"], "--name is 'mini_imagnet' (did you mean 'mini_imagenet'?), but one of "),
        (["--name=glyphs"], "--name is 'glyphs', but one of mini_imagenet, "),
        (["--name=cub_200_2011", "--manual=x"], "unrecognized arguments: --manual=x; --help lists the flags."),
        (["--name=mini_imagenet"], "--manual_dir is missing: the folder or archive that holds 'mini_imagenet' as "),
        (["--name=mini_imagenet", "--manual_dir=/nowhere/at/all"], "/nowhere/at/all (--manual_dir), which should hold"),
        (["--name=cifar100", "--manual_dir=x"], "downloads 'cifar100' by itself: leave --manual_dir out"),
    ],
)
def test_flags(arguments, message, tmp_path, capsys):
    refused(capsys, message, *arguments, f"--data_dir={tmp_path}")


def test_tensorflow_is_asked_for_where_it_is_needed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    message = "to prepare 'omniglot', TensorFlow is needed: pip install -e '.[data]'"
    refused(capsys, message, "--name=omniglot", f"--data_dir={tmp_path}")


class Published:
    """Stands for a builder of tensorflow-datasets."""

    def __init__(self, folder, error=None):
        self.data_dir, self.error = folder / "omniglot" / "3.0.0", error

    def download_and_prepare(self):
        if self.error:
            raise self.error
        self.data_dir.mkdir(parents=True)
        (self.data_dir / "dataset_info.json").write_text("{}")


def test_sets_of_tensorflow_datasets(tmp_path, capsys, monkeypatch):
    import tensorflow_datasets as tfds

    asked = []
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: name)
    flags = ("--name=omniglot", f"--data_dir={tmp_path}")
    monkeypatch.setattr(tfds, "builder", lambda *given, **named: Published(tmp_path, ConnectionError("no route")))
    refused(capsys, "'omniglot' could not be downloaded and prepared (no route): is there a network?", *flags)
    monkeypatch.setattr(tfds, "builder", lambda *given, **named: asked.append((given, named)) or Published(tmp_path))
    assert run(capsys, *flags)[:2] == (0, f"omniglot is prepared in {tmp_path / 'omniglot' / '3.0.0'}.\n")
    assert asked == [(("omniglot",), {"data_dir": tmp_path, "file_format": "array_record"})]
    assert "is prepared already in" in run(capsys, *flags)[1]


def remove(*names):
    def damage(root):
        for name in names:
            (root / name).unlink()

    return damage


def write(name, content):
    return lambda root: (root / name).write_bytes(content)


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch evil",)


def cache(**content):
    return write("mini-imagenet-cache-val.pkl", pickle.dumps(content))


IMAGES = np.zeros((2, 84, 84, 3), np.uint8)
DAMAGE = {
    "nothing": ("mini_imagenet", lambda root: None, lambda root: None, "data set 'mini_imagenet', is empty."),
    "other files": (
        "tiered_imagenet",
        lambda root: None,
        write("README", b"x"),
        "and in the folders right below it, for {train,val,test}/<class>/<image>; or {train,val,test}_images_png.pkl",
    ),
    "no validation": (
        "mini_imagenet",
        dummy_sets.class_folders,
        lambda root: shutil.rmtree(root / "val"),
        "does not hold data set 'mini_imagenet'",
    ),
    "empty class": (
        "mini_imagenet",
        dummy_sets.class_folders,
        lambda root: (root / "train" / "empty").mkdir(),
        "train/empty holds no picture (.png, .jpg, .jpeg, .bmp, .webp): remove it or fill it.",
    ),
    "shared class": (
        "mini_imagenet",
        dummy_sets.class_folders,
        lambda root: (root / "test" / "n07").rename(root / "test" / "n01"),
        "class 'n01' of data set 'mini_imagenet' is in both 'train' and 'test'",
    ),
    "broken picture": (
        "mini_imagenet",
        dummy_sets.class_folders,
        write("val/n04/2.png", dummy_sets.encoded(1, 2)[:60]),
        "val/n04/2.png of data set 'mini_imagenet' cannot be read",
    ),
    "missing list": ("mini_imagenet", dummy_sets.csv_lists, remove("val.csv"), "for {train,val,test}/<class>/"),
    "missing picture": (
        "mini_imagenet",
        dummy_sets.csv_lists,
        remove("images/n0300000002.png"),
        "n0300000002.png, named in line 4 of ",
    ),
    "wrong columns": (
        "mini_imagenet",
        dummy_sets.csv_lists,
        write("test.csv", b"file,class\n"),
        "test.csv must begin with the line 'filename,label', but begins with ['file', 'class']",
    ),
    "row without label": (
        "mini_imagenet",
        dummy_sets.csv_lists,
        write("test.csv", b"filename,label\nx.png\n"),
        "line 2 of ",
    ),
    "truncated pickle": (
        "mini_imagenet",
        dummy_sets.pickled_cache,
        write("mini-imagenet-cache-val.pkl", pickle.dumps({"image_data": IMAGES})[:100]),
        "mini-imagenet-cache-val.pkl cannot be read as pickled arrays",
    ),
    "pickle that runs a command": (
        "mini_imagenet",
        dummy_sets.pickled_cache,
        write("mini-imagenet-cache-val.pkl", pickle.dumps(Evil())),
        "system, which is no array",
    ),
    "other content": ("mini_imagenet", dummy_sets.pickled_cache, cache(x=1), "must hold a dict with 'image_data'"),
    "float images": (
        "mini_imagenet",
        dummy_sets.pickled_cache,
        cache(image_data=IMAGES / 255, class_dict={}),
        "must be an array of uint8 [n, height, width, 3], but are float64 [2, 84, 84, 3]",
    ),
    "place beyond the images": (
        "mini_imagenet",
        dummy_sets.pickled_cache,
        cache(image_data=IMAGES, class_dict={"n04": [0, 2]}),
        "image 2 in 'class_dict' of ",
    ),
    "place in two classes": (
        "mini_imagenet",
        dummy_sets.pickled_cache,
        cache(image_data=IMAGES, class_dict={"n04": [0], "n05": [0]}),
        "must be one of its 2 images, in one class",
    ),
    "missing labels": ("tiered_imagenet", dummy_sets.pickled_pngs, remove("val_labels.pkl"), "labels.pkl is missing"),
    "labels of another name": (
        "tiered_imagenet",
        dummy_sets.pickled_pngs,
        write("val_labels.pkl", pickle.dumps({"label": [1]})),
        "val_labels.pkl must hold a dict with 'label_specific' or 'labels'",
    ),
    "too few labels": (
        "tiered_imagenet",
        dummy_sets.pickled_pngs,
        write("val_labels.pkl", pickle.dumps({"labels": [1, 2]})),
        "holds 8 images, but its labels are 2 of type int64",
    ),
    "no list of pictures": (
        "tiered_imagenet",
        dummy_sets.pickled_pngs,
        write("val_images_png.pkl", pickle.dumps({})),
        "must hold a list of PNG files, but holds a dict",
    ),
    "nonsense for arrays": (
        "tiered_imagenet",
        dummy_sets.arrays_of_opencv,
        write("train_images.npz", b"nonsense"),
        "train_images.npz cannot be read as .npz arrays",
    ),
    "arrays of another name": (
        "tiered_imagenet",
        dummy_sets.arrays_of_opencv,
        lambda root: np.savez(root / "train_images.npz", pictures=IMAGES),
        "must hold an array called images, but holds pictures",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_sentence_and_leaves_nothing_behind(case, tmp_path, capsys, monkeypatch):
    name, make, damage, message = DAMAGE[case]
    given = tmp_path / "given"
    given.mkdir()
    make(given)
    damage(given)
    monkeypatch.chdir(tmp_path)
    refused(capsys, message, f"--name={name}", f"--manual_dir={given}", f"--data_dir={tmp_path / 'out'}")
    assert not (tmp_path / "evil").exists()
    with pytest.raises(UserError, match="was not found"):
        read(name, tmp_path / "out")


def encrypted_zip() -> bytes:
    """An archive whose one file says that it is encrypted."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("bird.png", b"x")
    content = bytearray(stream.getvalue())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the file's own header, and the directory's
        content[content.index(signature) + flags] |= 1
    return bytes(content)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("birds.rar", b"x", "is neither a folder nor an archive (.zip, "),
        ("birds.tgz", b"nonsense", "birds.tgz cannot be unpacked"),
        ("birds.zip", b"nonsense", "birds.zip cannot be unpacked"),
        ("locked.zip", encrypted_zip(), "locked.zip cannot be unpacked, it is damaged, encrypted or no archive"),
    ],
)
def test_bad_archives(file, content, message, tmp_path, capsys):
    (tmp_path / file).write_bytes(content)
    flags = (f"--manual_dir={tmp_path / file}", f"--data_dir={tmp_path / 'out'}")
    refused(capsys, message, "--name=cub_200_2011", *flags)


def test_archive_stays_inside_its_folder(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "birds.zip", "w") as archive:
        archive.writestr("../outside.txt", "x")
    refused(capsys, "does not hold data set", "--name=cub_200_2011", f"--manual_dir={tmp_path / 'birds.zip'}",
            f"--data_dir={tmp_path / 'out'}")  # fmt: skip
    assert not list(tmp_path.rglob("outside.txt"))


def test_folder_that_cannot_be_written(tmp_path, capsys):
    dummy_sets.class_folders(tmp_path / "given")
    (tmp_path / "file").write_text("")
    flags = (f"--manual_dir={tmp_path / 'given'}", f"--data_dir={tmp_path / 'file'}")
    refused(capsys, "could not be prepared in", "--name=mini_imagenet", *flags)


def test_as_a_command():
    command = [sys.executable, "-m", "common.data.prepare", "--name=cub"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --name is 'cub'")
    assert done.stderr.count("\n") == 1
