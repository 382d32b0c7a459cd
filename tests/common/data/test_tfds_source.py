import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from common.data import load
from common.errors import UserError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Small 'omniglot' (40 characters x 3) and 'cifar10', prepared without TensorFlow and without a network.

    The image feature writes pictures that come as encoded files as they are; only encoding arrays needs TensorFlow.
    """
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")

    def prepare(set_name, size, class_names, labels_of_split):
        class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            name = set_name
            VERSION = tfds.core.Version("3.0.0")

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(size, size, 3)),
                    "label": tfds.features.ClassLabel(names=class_names),
                }
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(labels) for split, labels in labels_of_split.items()}

            def _generate_examples(self, labels):
                for label in labels:
                    for index in range(3):
                        file = io.BytesIO()
                        Image.new("RGB", (size, size), (label, 50 * index, 0)).save(file, "PNG")
                        file.seek(0)
                        yield f"{label}-{index}", {"image": file, "label": label}

        Toy(data_dir=folder, file_format="array_record").download_and_prepare()

    characters = [str(index) for index in range(40)]
    prepare("omniglot", 20, characters, {"train": range(24), "test": range(24, 40)})
    names = [f"thing{index}" for index in range(10)]
    prepare("cifar10", 32, names, {"train": range(10), "test": range(10)})
    return folder


def read(name, folder, **changes):
    task = "fewshot" if name == "omniglot" else "classification"
    return load(name, **{"task": task, "image_size": 16, "channels": 3, "path": str(folder), **changes})


def test_classification(prepared):
    data = read("cifar10", prepared, image_size=32)
    assert set(data.splits) == {"train", "test"}
    assert data.num_classes == 10
    train = data.splits["train"]
    assert train.class_names[3] == "thing3"
    assert train.images.shape == (30, 32, 32, 3)
    np.testing.assert_array_equal(train.images[:, 5, 5, 0], train.labels)  # red is the label


def test_omniglot_characters_are_pooled_and_split(prepared):
    data = read("omniglot", prepared)
    sizes = {name: split.num_classes for name, split in data.splits.items()}
    assert sizes == {"train": 27, "validation": 3, "test": 10}
    names = [name for split in data.splits.values() for name in split.class_names]
    assert sorted(names) == [f"character {index:04d}" for index in range(40)]
    for split in data.splits.values():
        np.testing.assert_array_equal(split.labels, np.repeat(np.arange(split.num_classes), 3))
        characters = [int(split.class_names[label].split()[1]) for label in split.labels]
        np.testing.assert_array_equal(split.images[:, 4, 4, 0], characters)
    again = read("omniglot", prepared, seed=7)
    assert again.splits["test"].class_names == data.splits["test"].class_names


def test_omniglot_sizes_of_the_papers():
    from common.data.tfds_source import _split_characters

    labels = np.repeat(np.arange(1623, dtype=np.int32), 2)
    splits = _split_characters(np.zeros((len(labels), 2, 2, 1), np.uint8), labels)
    assert [split.num_classes for split in splits.values()] == [1100, 100, 423]


def test_data_dir_from_environment(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert len(read("cifar10", "").splits["test"].images) == 30


def test_newest_version_is_read(prepared, tmp_path):
    shutil.copytree(prepared / "cifar10" / "3.0.0", tmp_path / "cifar10" / "3.0.0")
    shutil.copytree(prepared / "cifar10" / "3.0.0", tmp_path / "cifar10" / "incomplete.X_3.0.2")
    old = tmp_path / "cifar10" / "2.10.0"
    old.mkdir()
    (old / "dataset_info.json").write_text("old")
    assert len(read("cifar10", tmp_path).splits["train"].images) == 30


def test_missing_set_is_named_at_once_and_offline(tmp_path):
    code = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise SystemExit('network was used')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from common.data import load\n"
        "load('cifar100', task='classification', image_size=32, channels=3)\n"
    )
    environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path)}
    start = time.perf_counter()
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert time.perf_counter() - start < 5
    for part in (
        "common.errors.UserError: data set 'cifar100' was not found",
        str(tmp_path / "cifar100"),
        "pip install -e .[data]",
        "python -m common.data.prepare --name=cifar100`",
        "--config.dataset=glyphs",
    ):
        assert part in shown.stderr


def test_reading_needs_neither_network_nor_tensorflow(prepared, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    read("cifar10", prepared)
    assert "tensorflow" not in sys.modules


@pytest.fixture
def copy(prepared, tmp_path):
    shutil.copytree(prepared / "cifar10", tmp_path / "cifar10")
    return tmp_path / "cifar10" / "3.0.0"


def test_tfrecord_is_refused(copy):
    info = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match=r"prepared as tfrecord, .*array_record is needed: prepare it once"):
        read("cifar10", copy.parent.parent)


def test_damaged_info(copy):
    (copy / "dataset_info.json").write_text('{"splits": ')
    with pytest.raises(UserError, match=r"dataset_info.json cannot be read"):
        read("cifar10", copy.parent.parent)


def test_missing_shard(copy):
    (copy / "cifar10-test.array_record-00000-of-00001").unlink()
    with pytest.raises(UserError, match=r"incomplete, file .*test.array_record-00000-of-00001 is missing"):
        read("cifar10", copy.parent.parent)


def test_damaged_shard(copy):
    (copy / "cifar10-train.array_record-00000-of-00001").write_bytes(b"nonsense" * 100)
    with pytest.raises(UserError, match=r"split 'train' in .* cannot be read"):
        read("cifar10", copy.parent.parent)
