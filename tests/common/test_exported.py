"""A function and its weights in one file."""

import jax.numpy as jnp
import numpy as np
import pytest

from common import exported
from common.errors import UserError


def scale(variables, x):
    return (x.astype(jnp.float32) * variables["by"] + variables["deep"]["plus"][None], x.sum(1))


VARIABLES = {"by": jnp.float32(2), "deep": {"plus": jnp.arange(3.0)}}


def test_any_number_of_rows_and_the_record(tmp_path):
    file = tmp_path / "folder" / "scale.npz"
    exported.write(scale, VARIABLES, [exported.some((3,), jnp.int32)], {"names": ["a", "b"]}, file)
    call, record = exported.load(file)
    assert record == {"names": ["a", "b"]}
    for rows in (1, 4):
        x = jnp.arange(3 * rows).reshape(rows, 3)
        for found, expected in zip(call(x), scale(VARIABLES, x), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert [path.name for path in file.parent.iterdir()] == ["scale.npz"]


def test_files_that_are_nothing_of_the_kind(tmp_path):
    for name, content in (("empty", b""), ("text", b"text"), ("zip", b"PK\x03\x04")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} is no exported program"):
            exported.load(tmp_path / name)
    np.savez(tmp_path / "other.npz", a=np.ones(2))
    with pytest.raises(UserError, match=r"other.npz is no exported program .*write it again"):
        exported.load(tmp_path / "other.npz")
    with pytest.raises(UserError, match="is no exported program"):
        exported.load(tmp_path / "missing.npz")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out=.* cannot be written"):
        exported.write(scale, VARIABLES, [exported.some((3,), jnp.int32)], {}, tmp_path / "file" / "x.npz")
