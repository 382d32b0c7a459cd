"""Weights files: what is read, how names are accounted for, and which sentence each mistake gets."""

import contextlib
import hashlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn

from common.errors import UserError
from common.pretrained import (
    Entry,
    check_sha256,
    conv_kernel,
    flatten_tree,
    linear_kernel,
    match,
    nest,
    read_weights,
    save_safetensors,
)
from tests.common.torch_writer import ORDERED_DICT, Call, whole, write_legacy, write_zip

TEMPLATE = {
    "params": {
        "conv": {"kernel": jax.ShapeDtypeStruct((3, 5, 2, 4), jnp.float32)},
        "head": {
            "kernel": jax.ShapeDtypeStruct((4, 6), jnp.float32),
            "bias": jax.ShapeDtypeStruct((6,), jnp.float32),
        },
    }
}
ENTRIES = [
    Entry("conv.weight", "params/conv/kernel", conv_kernel),
    Entry("fc.weight", "params/head/kernel", linear_kernel),
    Entry("fc.bias", "params/head/bias"),
]


def weights():
    random = np.random.default_rng(0)
    shapes = {"conv.weight": (4, 2, 3, 5), "fc.weight": (6, 4), "fc.bias": (6,)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_safetensors_round_trip(tmp_path):
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "b": jnp.arange(3, dtype=jnp.bfloat16),
        "c": np.int64(5),
        "d": np.array([True, False]),
    }
    save_safetensors(tmp_path / "new" / "w.safetensors", arrays, {"made by": "us"})
    read = read_weights(tmp_path / "new" / "w.safetensors")
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], np.asarray(array))
        assert read[name].shape == np.shape(array)
    assert read["b"].dtype == ml_dtypes.bfloat16
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["w.safetensors"]
    with pytest.raises(UserError, match="no such type"):
        save_safetensors(tmp_path / "w", {"a": np.array(["text"])})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_safetensors(tmp_path / "file" / "w", {"a": np.zeros(1)})


def test_damaged_safetensors(tmp_path):
    path = tmp_path / "w.safetensors"
    save_safetensors(path, {"a": np.arange(4.0), "b": np.arange(3)})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError) as raised:
            read_weights(path)
        assert str(path) in str(raised.value)
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[random.integers(len(damaged))] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            read_weights(path)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_parts_of_a_checkpoint(tmp_path, write):
    a, b = np.float32([1, 2]), np.float32([3])
    inner = Call(ORDERED_DICT, ([["module.w", whole("0", a)], ["module.b", whole("1", b)]],))
    path = write(tmp_path / "w.pth", {"state_dict": inner, "epoch": 3, "ema": {"net": {"w": whole("2", a + 1)}}})
    assert list(read_weights(path)) == ["state_dict.module.w", "state_dict.module.b", "ema.net.w"]
    chosen = read_weights(str(path), key="state_dict", prefix="module.")
    assert list(chosen) == ["w", "b"]
    np.testing.assert_array_equal(chosen["w"], a)
    np.testing.assert_array_equal(read_weights(path, key="ema.net")["w"], a + 1)
    for key in ("state_dic", "epoch", "state_dict.module", "ema.other"):
        with pytest.raises(UserError, match=f"no dictionary '{key}'"):
            read_weights(path, key=key)
    with pytest.raises(UserError, match="did you mean 'state_dict'"):
        read_weights(path, key="state_dic")
    with pytest.raises(UserError, match=r"begins with 'model\.' but state_dict\.module\.w"):
        read_weights(path, prefix="model.")


def test_files_that_hold_no_weights(tmp_path):
    path = tmp_path / "w.pth"
    with pytest.raises(UserError, match="does not exist"):
        read_weights(path)
    with pytest.raises(UserError, match="does not exist"):
        read_weights(tmp_path)
    for content in (b"", b"version https://git-lfs.github.com/spec/v1\n", b"<html></html>", b"\x93NUMPY"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is no weights file"):
            read_weights(path)
    with pytest.raises(UserError, match="holds a list"):
        read_weights(write_zip(path, [whole("0", np.zeros(1))]))
    with pytest.raises(UserError, match="holds no weights"):
        read_weights(write_zip(path, {"epoch": 1}))


def test_dictionaries_in_dictionaries_do_not_fill_the_memory(tmp_path):
    """Each level holds the one below twice: 2^60 names in a file of a few hundred bytes."""
    data = b"\x80\x02}" + b"".join(
        b"r" + i.to_bytes(4, "little") + b"}X\x01\x00\x00\x00aj" + i.to_bytes(4, "little")
        + b"sX\x01\x00\x00\x00bj" + i.to_bytes(4, "little") + b"s" for i in range(60)
    )  # fmt: skip
    with pytest.raises(UserError, match="or too many"):
        read_weights(write_zip(tmp_path / "w.pth", {}, data=data + b"."))


def test_match_transposes_and_accounts():
    given = weights() | {"bn.num_batches_tracked": np.int64(3), "layer4.0.weight": np.zeros(2, np.float32)}
    matched = match(given, ENTRIES, TEMPLATE, ignore=("*num_batches_tracked", "layer4.*"))
    params = matched.tree["params"]
    np.testing.assert_array_equal(params["conv"]["kernel"], given["conv.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(params["head"]["kernel"], given["fc.weight"].T)
    np.testing.assert_array_equal(params["head"]["bias"], given["fc.bias"])
    assert set(matched.used) == {"conv.weight", "fc.weight", "fc.bias"}
    assert matched.ignored == ("bn.num_batches_tracked", "layer4.0.weight")
    assert all(leaf.flags.c_contiguous and leaf.flags.writeable for leaf in flatten_tree(matched.tree).values())
    assert not np.shares_memory(params["head"]["bias"], given["fc.bias"])
    assert nest(flatten_tree(matched.tree)).keys() == matched.tree.keys()


def test_match_computes_what_the_other_framework_computes():
    """A convolution, a depthwise one and a linear layer against their definitions in PyTorch's axes."""
    random = np.random.default_rng(1)
    x, given = random.standard_normal((2, 5, 6, 4)).astype(np.float32), {}
    given["conv"] = random.standard_normal((3, 4, 2, 3)).astype(np.float32)
    given["depthwise"] = random.standard_normal((4, 1, 3, 2)).astype(np.float32)
    for name, groups in (("conv", 1), ("depthwise", 4)):
        out, _, h, w = given[name].shape
        net = nn.Conv(out, (h, w), padding="VALID", use_bias=False, feature_group_count=groups)
        template = jax.eval_shape(net.init, jax.random.key(0), x)
        tree = match({name: given[name]}, [Entry(name, "params/kernel", conv_kernel)], template).tree
        windows = np.lib.stride_tricks.sliding_window_view(x, (h, w), axis=(1, 2))  # [n, y, x, c, h, w]
        rule = "nyxchw,ochw->nyxo" if groups == 1 else "nyxchw,chw->nyxc"
        expected = np.einsum(rule, windows, given[name] if groups == 1 else given[name][:, 0])
        np.testing.assert_allclose(net.apply(tree, x), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"fc.bias": None}, "1 missing: fc.bias"),
        ({"extra": np.zeros(1)}, "1 unexpected: extra"),
        ({"fc.bias": None, "extra": np.zeros(1)}, "1 missing: fc.bias; 1 unexpected: extra"),
        ({f"more{i}": np.zeros(1) for i in range(9)}, "9 unexpected: more0, more1, more2, more3, more4 and 4 more"),
        ({"fc.bias": np.zeros(7, np.float32)}, "fc.bias has shape [7] instead of [6]"),
        ({"fc.weight": np.zeros((4, 6), np.float32)}, "fc.weight has shape [6, 4] instead of [4, 6]"),
        ({"fc.weight": np.zeros((6, 4, 1, 1), np.float32)}, "fc.weight has shape [6, 4, 1, 1] instead of [4, 6]"),
        ({"conv.weight": np.zeros(3, np.float32)}, "conv.weight has shape [3] instead of [3, 5, 2, 4]"),
        ({"fc.bias": np.zeros(6, np.int8)}, "fc.bias holds int8 instead of float32"),
        ({"fc.bias": np.full(6, np.nan, np.float32)}, "fc.bias holds values that are not finite"),
    ],
)
def test_match_names_what_does_not_fit(change, sentence):
    given = {name: array for name, array in (weights() | change).items() if array is not None}
    with pytest.raises(UserError) as raised:
        match(given, ENTRIES, TEMPLATE, where="net.pth")
    assert sentence in str(raised.value)
    assert str(raised.value).startswith("net.pth does not fit the network (")


def test_match_converts_precision_and_survives_own_transforms():
    given = weights()
    for dtype in (np.float16, np.float64, ml_dtypes.bfloat16):
        tree = match(given | {"fc.bias": np.ones(6, dtype)}, ENTRIES, TEMPLATE).tree
        assert tree["params"]["head"]["bias"].dtype == np.float32
    halves = [*ENTRIES[:2], Entry("fc.bias", "params/head/bias", lambda array: array.reshape(3, 5)[0])]
    with pytest.raises(UserError, match="cannot become"):
        match(given, halves, TEMPLATE)


def test_match_refuses_a_wrong_name_map():
    for entries in (ENTRIES[:2], [*ENTRIES, ENTRIES[0]], [*ENTRIES, Entry("fc.bias", "params/other")]):
        with pytest.raises(ValueError, match="entries and template differ"):
            match(weights(), entries, TEMPLATE)


def test_sha256(tmp_path):
    path = tmp_path / "w"
    path.write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    check_sha256(path, digest)
    check_sha256(path, digest[:8].upper())
    with pytest.raises(UserError, match="has SHA-256 ba7816bf"):
        check_sha256(path, "0" * 64)
    with pytest.raises(UserError, match="cannot be read"):
        check_sha256(tmp_path / "none", digest)
    with pytest.raises(ValueError, match="8 to 64 digits"):
        check_sha256(path, "ba")


def test_neither_torch_nor_jax_is_imported(tmp_path):
    path = write_zip(tmp_path / "w.pth", {"a": whole("0", np.zeros(2, np.float32))})
    program = (
        "import sys; from common.pretrained import read_weights; print(*read_weights(sys.argv[1]));"
        "assert not {'torch', 'jax', 'tensorflow'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "a\n"), done.stderr
