import gzip

import numpy as np
import pytest

from common.data import fashion_mnist, load
from common.errors import UserError


def idx(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


@pytest.fixture
def files(tmp_path):
    """Twenty train and ten test images; train files are gzipped, test files are not."""
    random = np.random.default_rng(0)
    arrays = {}
    for prefix, count, suffix in (("train", 20, ".gz"), ("t10k", 10, "")):
        images = random.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for stem, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            content = idx(array)
            (tmp_path / f"{stem}{suffix}").write_bytes(gzip.compress(content) if suffix else content)
            arrays[stem] = array
    return tmp_path, arrays


def read(folder, image_size=28, channels=1):
    path = None if folder is None else str(folder)
    return load("fashion_mnist", task="classification", image_size=image_size, channels=channels, path=path)


def test_reads_gzipped_and_plain_files(files):
    folder, arrays = files
    data = read(folder)
    np.testing.assert_array_equal(data.splits["train"].images[..., 0], arrays["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(data.splits["test"].labels, arrays["t10k-labels-idx1-ubyte"])
    assert data.splits["train"].class_names[9] == "Ankle boot"


def test_resizes_and_repeats_grey(files):
    images = read(files[0], image_size=32, channels=3).splits["test"].images
    assert images.shape == (10, 32, 32, 3)
    np.testing.assert_array_equal(images[..., 0], images[..., 2])


def test_found_in_the_debian_folder(files, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", files[0])
    assert len(read(None).splits["train"].images) == 20


def test_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    with pytest.raises(UserError) as caught:
        read(None)
    for part in (
        "'fashion_mnist' was not found",
        str(tmp_path / "debian"),
        str(tmp_path / "tfds" / "fashion_mnist"),
        "apt-get install dataset-fashion-mnist",
        "common.data.prepare --name=fashion_mnist",
        "--config.dataset=glyphs",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("stem", "damage", "sentence"),
    [
        ("t10k-images-idx3-ubyte", lambda content: content[:-5], "is damaged: 7835 bytes follow .* instead of 7840"),
        ("t10k-labels-idx1-ubyte", lambda content: b"", "is no IDX file of uint8 values with 1 axes"),
        ("t10k-images-idx3-ubyte", lambda content: content[:9], "is no IDX file"),
        ("t10k-labels-idx1-ubyte", lambda content: b"\0\0\x0b\x01" + content[4:], "is no IDX file"),
        ("train-images-idx3-ubyte.gz", lambda content: content[:200], "cannot be read"),
        ("train-labels-idx1-ubyte.gz", lambda content: b"no gzip", "cannot be read"),
        ("t10k-labels-idx1-ubyte", lambda content: idx(np.zeros(9, np.uint8)), "holds 10 test images but 9 labels"),
        ("t10k-labels-idx1-ubyte", lambda content: idx(np.full(10, 10, np.uint8)), "labels must lie in 0..9"),
    ],
)
def test_damaged_files(files, stem, damage, sentence):
    file = files[0] / stem
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=sentence) as caught:
        read(files[0])
    if "labels must lie" not in sentence:
        assert str(files[0]) in str(caught.value)


def test_one_file_missing(files):
    (files[0] / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte\[.gz\] is missing"):
        read(files[0])


@pytest.mark.skipif(not fashion_mnist.DEBIAN_FOLDER.is_dir(), reason="package dataset-fashion-mnist is not installed")
def test_real_files():
    data = read(None)
    assert {name: len(split.images) for name, split in data.splits.items()} == {"train": 60_000, "test": 10_000}
    np.testing.assert_array_equal(np.bincount(data.splits["train"].labels), 6000)
    np.testing.assert_allclose((*data.mean, *data.std), (0.2860, 0.3530), atol=1e-4)
