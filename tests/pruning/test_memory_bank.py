"""Which networks teach, and the file of their logits."""

import numpy as np
import pytest

from common.errors import UserError
from pruning import memory_bank
from pruning import search as searching
from pruning.candidates import whole
from pruning.history import select_teachers
from pruning.masks import keep_count, mask
from tests.pruning import networks
from tests.pruning.networks import golden


@pytest.mark.parametrize("case", range(4))
def test_golden_selection(case):
    bank = golden("memory_bank")
    chosen = select_teachers(bank[f"case{case}_losses"], int(bank[f"case{case}_K"]))
    np.testing.assert_array_equal(chosen, bank[f"case{case}_selected"])


def test_golden_teachers_of_the_search():
    """Entries 5 to 8 tie exactly; the official sort is not stable and took 6."""
    bank = golden("memory_bank")
    chosen = select_teachers(bank["history_loss"], 5)
    np.testing.assert_array_equal(bank["history_loss"][chosen], bank["teacher_loss"])
    assert [a == b or {a, b} <= {5, 6, 7, 8} for a, b in zip(chosen, bank["teacher_index"], strict=True)] == [True] * 5


def test_fewer_networks_than_teachers():
    assert select_teachers(np.array([2.0, 1.0]), 5) == [1, 0]


def test_golden_logits(resnet56, tmp_path):
    graph, variables = resnet56
    bank, search = golden("memory_bank"), golden("search")
    teachers = []
    for row in bank["teacher_index"]:
        rank = searching.split(graph, search["trace_rank"][max(row - 1, 0)])
        rates = search["history_rates"][row]
        teachers.append(
            {g.name: mask(rank[g.name], keep_count(g.channels, r)) for g, r in zip(graph.gates, rates, strict=True)}
        )
    x, size = networks.images(32), int(bank["bank_batch"])
    found = memory_bank.build(
        tmp_path / "bank.npy",
        lambda masks, images: whole(graph, variables, images, masks),
        teachers,
        lambda: (x[first : first + size] for first in range(0, 32, size)),
        (32, 10),
        "float32",
    )
    np.testing.assert_allclose(found, bank["bank_logits"], rtol=0, atol=1e-4)


def build(path, dtype="float32", count=7):
    def batches():
        yield np.arange(4.0)
        yield np.arange(4.0, count)

    def logits(masks, x):
        return masks["a"] * x[:, None] + np.zeros(3)

    return memory_bank.build(path, logits, [{"a": 1.0}, {"a": 10.0}], batches, (count, 3), dtype)


@pytest.mark.parametrize("dtype", memory_bank.DTYPES)
def test_file(tmp_path, dtype):
    bank = build(tmp_path / "bank.npy", dtype)
    assert isinstance(bank, np.memmap)
    assert bank.dtype == dtype
    np.testing.assert_array_equal(bank[:, 0], np.arange(7.0)[:, None] * [1, 10])
    np.testing.assert_array_equal(memory_bank.read(tmp_path / "bank.npy", (7, 3)), bank)
    assert [file.name for file in tmp_path.iterdir()] == ["bank.npy"]


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"bank.npy cannot be read \(FileNotFoundError\); remove the folder"):
        memory_bank.read(tmp_path / "bank.npy", (7, 3))
    build(tmp_path / "bank.npy")
    with pytest.raises(UserError, match=r"has shape \[7, 3, 2\], but the data have \[8, 3\]"):
        memory_bank.read(tmp_path / "bank.npy", (8, 3))
    (tmp_path / "bank.npy").write_bytes(b"\x93NUMPY nonsense")
    with pytest.raises(UserError, match=r"bank.npy cannot be read \(ValueError\)"):
        memory_bank.read(tmp_path / "bank.npy", (7, 3))
