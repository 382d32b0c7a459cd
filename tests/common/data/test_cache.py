import logging

import numpy as np
import pytest

from common.data.cache import cache_dir, cached_arrays

KEY = {"name": "toy", "version": [1, "2.0"], "size": 3}


class Maker:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"numbers": np.arange(1000), "words": np.array(["one", "two"])}


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LEANVISION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_order_of_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("LEANVISION_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir("data") == tmp_path / "own" / "data"
    monkeypatch.delenv("LEANVISION_CACHE")
    assert cache_dir("data") == tmp_path / "xdg" / "leanvision" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir("data") == tmp_path / ".cache" / "leanvision" / "data"


def test_made_once_and_equal(own_cache):
    make = Maker()
    first = cached_arrays(KEY, make)
    second = cached_arrays(dict(reversed(KEY.items())), make)
    assert make.calls == 1
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert [file.suffix for file in (own_cache / "data").iterdir()] == [".npz"]


def test_another_key_is_another_file(own_cache):
    make = Maker()
    cached_arrays(KEY, make)
    cached_arrays({**KEY, "version": [2, "2.0"]}, make)
    assert make.calls == 2
    assert len(list((own_cache / "data").iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "nonsense"])
def test_damaged_file_is_made_anew(own_cache, damage, caplog):
    make = Maker()
    cached_arrays(KEY, make)
    (file,) = (own_cache / "data").iterdir()
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    damaged = {"truncated": bytes(content[: len(content) // 2]), "empty": b"", "nonsense": b"nonsense" * 99}
    file.write_bytes(damaged.get(damage, bytes(content)))
    with caplog.at_level(logging.WARNING):
        again = cached_arrays(KEY, make)
    assert make.calls == 2
    np.testing.assert_array_equal(again["numbers"], np.arange(1000))
    assert "made anew" in caplog.text
    cached_arrays(KEY, make)
    assert make.calls == 2


def test_unwritable_cache_costs_time_only(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LEANVISION_CACHE", str(tmp_path / "file"))
    make = Maker()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(cached_arrays(KEY, make)["numbers"], np.arange(1000))
    assert make.calls == 2
    assert "cannot be cached" in caplog.text


def test_failed_write_leaves_nothing(own_cache, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full_disk)
    cached_arrays(KEY, Maker())
    assert list((own_cache / "data").iterdir()) == []
