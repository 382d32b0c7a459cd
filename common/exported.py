"""A function and its weights in one file that needs jax and numpy only: the program (StableHLO), arrays, a record.

    write(function, variables, inputs, record, out)     trace `function(variables, *inputs)` and store it all
    load(file)                                          (function of the inputs, record)

The arrays stay outside the program, so the program is small and the weights are stored once.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from common import npz
from common.errors import UserError

PLATFORMS = ("cpu", "cuda", "tpu")
PyTree = Any


def some(shape: Sequence[int], dtype: Any) -> jax.ShapeDtypeStruct:
    """An input [n, *shape] for any n."""
    (number,) = export.symbolic_shape("n")
    return jax.ShapeDtypeStruct((number, *shape), dtype)


def write(
    function: Callable[..., PyTree],
    variables: PyTree,
    inputs: Sequence[jax.ShapeDtypeStruct],
    record: Mapping[str, Any],
    out: Path,
) -> None:
    """Store `function(variables, *inputs)`, which returns a tuple, in the file `out` (.npz), for all platforms.

    `record` is JSON. Raises UserError if the file cannot be written.
    """
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, jax.device_get(variables)))

    def program(leaves, *inputs):
        return function(jax.tree.unflatten(structure, leaves), *inputs)

    exported = export.export(jax.jit(program), platforms=PLATFORMS)(leaves, *inputs)
    arrays = {f"weight_{place:04d}": leaf for place, leaf in enumerate(leaves)}
    content = io.BytesIO()
    np.savez(
        content,
        program=np.frombuffer(exported.serialize(), np.uint8),
        record=np.array(json.dumps(record)),
        **arrays,  # pyright: ignore[reportArgumentType]
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(out.name + ".partial")
        partial.write_bytes(content.getbuffer())
        partial.replace(out)
    except OSError as error:
        raise UserError(f"--out={out} cannot be written ({error.strerror}).") from error


def load(file: Path) -> tuple[Callable[..., PyTree], dict[str, Any]]:
    """(function of the inputs, record) of a written file.

    Raises:
      UserError: a file that is missing, damaged, or nothing that `write` has written.
    """
    try:
        arrays = npz.read(file)
        exported = export.deserialize(bytearray(arrays["program"].tobytes()))
        record = json.loads(str(arrays["record"]))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{file} is no exported program ({error}); write it again.") from error
    leaves = [jnp.asarray(arrays[name]) for name in sorted(arrays) if name.startswith("weight_")]
    return lambda *inputs: exported.call(leaves, *inputs), record
