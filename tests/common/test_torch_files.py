"""PyTorch files read without PyTorch: both forms, every type, and nothing that a file can do to us."""

import pickle
import random
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from common.errors import UserError
from common.torch_files import read_torch
from tests.common.torch_writer import (
    ORDERED_DICT,
    STORAGE_NAMES,
    Call,
    Global,
    Storage,
    pickled,
    tensor,
    whole,
    write_legacy,
    write_zip,
)

FORMS = {"zip": write_zip, "legacy": write_legacy}


@pytest.fixture(params=FORMS)
def write(request, tmp_path):
    """write(value, **damage) -> path, in both forms."""
    return lambda *value, **options: FORMS[request.param](tmp_path / "weights.pth", *value, **options)


def refusal(path):
    with pytest.raises(UserError) as raised:
        read_torch(path)
    text = str(raised.value)
    assert str(path) in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", STORAGE_NAMES)
def test_every_type(write, name):
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    array = np.array([[0, 1, 1], [1, 0, 3]]).astype(dtype)
    read = read_torch(write({"a": whole("7", array)}))["a"]
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, array)


def test_strides_offsets_and_shared_storages(write):
    values = np.arange(24, dtype=np.float32)
    storage = Storage("0", values)
    read = read_torch(
        write(
            {
                "whole": tensor(storage, 0, (4, 6), (6, 1)),
                "transposed": tensor(storage, 0, (6, 4), (1, 6)),
                "corner": tensor(storage, 8, (2, 2), (6, 1)),
                "expanded": tensor(storage, 23, (5, 2), (0, 0)),
                "scalar": tensor(storage, 5, (), ()),
                "empty": tensor(storage, 0, (0, 3), (3, 1)),
                "other": whole("1", np.float64([1.5])),
            }
        )
    )
    grid = values.reshape(4, 6)
    np.testing.assert_array_equal(read["whole"], grid)
    np.testing.assert_array_equal(read["transposed"], grid.T)
    np.testing.assert_array_equal(read["corner"], grid[1:3, 2:4])
    np.testing.assert_array_equal(read["expanded"], np.full((5, 2), 23, np.float32))
    assert read["scalar"] == 5
    assert read["scalar"].shape == ()
    assert read["empty"].shape == (0, 3)
    assert np.shares_memory(read["whole"], read["corner"])
    np.testing.assert_array_equal(read["other"], [1.5])


def test_plain_contents_come_back(write):
    """A state dict with its metadata, and what training scripts put beside it."""
    float64 = Call(Global("numpy", "dtype"), ("f8", False, True), (3, "<", None, None, None, -1, -1, 0))
    content = Call(Global("_codecs", "encode"), (np.float64(0.75).tobytes().decode("latin1"), "latin1"))
    metadata = {"_metadata": OrderedDict(version=1)}
    read = read_torch(
        write(
            {
                "network": Call(ORDERED_DICT, ([["w", whole("0", np.float32([1, 2]))]],), metadata),
                "best": Call(Global("numpy.core.multiarray", "scalar"), (float64, content)),
                "history": [1, 2.5, None, True, "text", (1, 2)],
            }
        )
    )
    assert list(read) == ["network", "best", "history"]
    np.testing.assert_array_equal(read["network"]["w"], [1, 2])
    assert read["best"] == 0.75
    assert read["history"] == [1, 2.5, None, True, "text", (1, 2)]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_files_of_pytorch(tmp_path, zipped, protocol):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    grid = torch.arange(24.0).reshape(4, 6)
    more = {"t": grid.t(), "row": grid[1:3, 2:4], "h": grid.half(), "b": grid > 3, "p": torch.nn.Parameter(grid)}
    saved = {"state_dict": net.state_dict(), "epoch": 3, "best": np.float64(0.5), "none": torch.zeros(0, 3), **more}
    path = tmp_path / "w.pth"
    torch.save(saved, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    read = read_torch(path)
    assert list(read) == list(saved)
    assert (read["epoch"], read["best"], read["none"].shape) == (3, 0.5, (0, 3))
    for name, value in more.items():
        np.testing.assert_array_equal(read[name], value.detach().numpy())
    assert list(read["state_dict"]) == list(net.state_dict())
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(read["state_dict"][name], value.numpy())
        assert read["state_dict"][name].dtype == value.numpy().dtype
    torch.save(net, path, _use_new_zipfile_serialization=zipped)
    assert "asks for torch.nn.modules.container.Sequential" in refusal(path)
    assert "state_dict()" in refusal(path)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "builtins.getattr",
        "torch.load",
        "numpy.load",
        "posix.system",
        "common.rng.key_for",
    ],
)
def test_malicious_pickle_is_refused_by_name(write, tmp_path, name):
    marker = tmp_path / "executed"
    module, _, function = name.rpartition(".")
    path = write({"a": Call(Global(module, function), (f"touch {marker}",))})
    assert f"asks for {name}" in refusal(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02c_codecs\nencode\n}X\x08\x00\x00\x00__code__K\x01sb.",  # attributes of a function
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",  # NEWOBJ
        b"\x80\x02(icollections\nOrderedDict\n.",  # INST
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x80\x02ctorch\nFloatStorage\n.",  # a bare type
        b"\x80\x02]q\x00h\x00a.",  # a list that contains itself
        b"\x80\x02" + b"]" * 150 + b"a" * 149 + b".",  # deep nesting
        b"\x80\x02K\x01r\xff\xff\xff\x7f.",  # a memo of 16 GB, with the unpickler in C
        b"\x80\x02X\xff\xff\xff\xffab.",  # text of 4 GB
        b"\x80\x02\x8b\xff\xff\xff\x7fab.",  # a number of 2 GB
        b"",
    ],
)
def test_hostile_opcodes_do_no_harm(write, data):
    path = write({}, data=data)
    if b"r\xff" in data:
        assert read_torch(path) == 1
    else:
        assert "damaged" in refusal(path)


def test_a_storage_must_hold_what_is_asked_of_it(write):
    storage = Storage("0", np.arange(6, dtype=np.float32))
    for shape, stride, offset in [((7,), (1,), 0), ((3, 2), (3, 1), 0), ((2,), (1,), 5), ((10**30,), (1,), 0)]:
        assert "beyond storage" in refusal(write({"a": tensor(storage, offset, shape, stride)}))
    for shape, stride, offset in [((-1,), (1,), 0), ((2,), (-1,), 3), ((2,), (1, 1), 0), ((2.0,), (1,), 0)]:
        assert "damaged" in refusal(write({"a": tensor(storage, offset, shape, stride)}))
    assert "damaged" in refusal(write({"a": tensor(storage._replace(count=10**15), 0, (10**15,), (1,))}))
    assert "damaged" in refusal(write({"a": tensor(storage._replace(count=-6), 0, (2,), (1,))}))
    assert "damaged" in refusal(write({"a": storage}))
    assert "damaged" in refusal(write({"a": tensor(5, 0, (2,), (1,))}))


def test_zip_archives_of_other_kinds(tmp_path):
    value = {"a": whole("0", np.zeros(10_000, np.float32))}
    path = tmp_path / "weights.pth"
    assert "compressed zip" in refusal(write_zip(path, value, compression=zipfile.ZIP_DEFLATED))
    assert "big" not in refusal(write_zip(path, value, byteorder="middle"))
    assert "-endian" in refusal(write_zip(path, value, byteorder="big"))
    assert list(read_torch(write_zip(path, value, byteorder=None))) == ["a"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no weights")
    assert "no data.pkl" in refusal(path)


def test_a_storage_name_is_no_path(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"12345678")
    storage = Storage("../../../secret", np.zeros(2, np.float32))
    data, _ = pickled({"a": tensor(storage, 0, (2,), (1,))})
    assert "damaged" in refusal(write_zip(tmp_path / "weights.pth", {}, data=data))
    assert "damaged" in refusal(write_zip(tmp_path / "w.pth", {}, data=data, extra=[(str(secret), b"x")]))


def test_an_archive_that_claims_more_than_it_is(tmp_path):
    path = write_zip(tmp_path / "weights.pth", {"a": whole("0", np.zeros(1000, np.float32))})
    content = bytearray(path.read_bytes())
    start = content.rfind(b"PK\x01\x02", 0, content.rfind(b"archive/data/0"))
    content[start + 24 : start + 28] = (2**31).to_bytes(4, "little")
    path.write_bytes(content)
    assert "more data than its own size" in refusal(path)


def test_legacy_files_of_other_kinds(tmp_path):
    path, value = tmp_path / "weights.pth", {"a": whole("0", np.zeros(3, np.float32))}
    assert "not of torch.save" in refusal(write_legacy(path, value, magic=5))
    assert "-endian" in refusal(write_legacy(path, value, little_endian=False))
    assert "4 bytes behind" in refusal(write_legacy(path, value, tail=b"abcd"))
    viewed = {"a": tensor(Storage("0", np.zeros(3, np.float32), view=("0", 1, 2)), 0, (2,), (1,))}
    assert "damaged" in refusal(write_legacy(path, viewed))
    path.write_bytes(pickle.dumps({"a": 1}, 2))
    assert "not of torch.save" in refusal(path)
    path.write_bytes(b"")
    assert "begins with b''" in refusal(path)


def test_truncation_anywhere_is_one_sentence(write):
    path = write({"a": whole("0", np.arange(4, dtype=np.float32)), "b": whole("1", np.int64([1]))})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refusal(path)


def test_bit_flips_give_arrays_or_one_sentence(write):
    path = write({"a": whole("0", np.arange(4, dtype=np.float32)), "b": [1, "text"], "c": whole("1", np.int64([1]))})
    content, random_source, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(1500):
        damaged = bytearray(content)
        for _ in range(random_source.choice((1, 1, 2, 8))):
            damaged[random_source.randrange(len(damaged))] ^= 1 << random_source.randrange(8)
        path.write_bytes(damaged)
        try:
            read_torch(path)
        except UserError as error:
            refused += "\n" not in str(error)
    assert refused > 500
