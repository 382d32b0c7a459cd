"""PyTorch checkpoint files (.pt, .pth, .bin) read without PyTorch: nothing that such a file says is ever executed.

    read_torch(path) -> the saved object, with a numpy array in place of each tensor

Both forms are read: the zip archive that `torch.save` writes since version 1.6 (`data.pkl` beside one record for each
storage) and the older sequence of pickles that begins with a magic number. The pickles may build tensors, numbers,
text and plain containers; a file that asks for anything else (a whole saved model, say) is refused by name.
"""

import collections
import io
import mmap
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from common.errors import UserError

# What a damaged file can make pickle, zipfile, struct and numpy raise.
_DAMAGE = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, NotImplementedError, OSError, RuntimeError),
    *(TypeError, ValueError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile),
)
_ZIP_START, _PICKLE_START = b"PK\x03\x04", b"\x80"
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
}
_STORAGES = {f"torch.{name}": np.dtype(dtype) for name, dtype in _DTYPES.items()}
# Everything that moves pickles about, none of what makes objects or sets their attributes (NEWOBJ, INST, EXT, ...).
_OPCODES = (
    *("PROTO", "STOP", "FRAME", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE"),
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
    *("TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST", "EMPTY_LIST", "APPEND", "APPENDS"),
    *("DICT", "EMPTY_DICT", "SETITEM", "SETITEMS"),
    *("GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
)


_PYTHONS_UNPICKLER: Any = vars(pickle)["_Unpickler"]


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    count: int


class _Tensor(NamedTuple):
    """A tensor whose storage has not been read yet; offset and stride in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Refused(UserError):
    """Understood, and not to be reported as damage."""


def read_torch(path: Path) -> Any:
    """The object in a file of `torch.save`, with numpy arrays (views, read-only) in place of tensors.

    Args:
      path: zip or legacy form, told apart by content.

    Returns:
      Dicts, lists, tuples, numbers, text and arrays as they were saved, keys in order. Tensors that shared a
      storage share memory; bfloat16 arrays have the dtype of `ml_dtypes`.

    Raises:
      UserError: no such format, damaged, big-endian, or it asks for something else than tensors and plain containers.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
            stream.seek(0)
            if start == _ZIP_START:
                return _read_zip(stream, path.stat().st_size)
            if start[:1] == _PICKLE_START:
                with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    return _read_legacy(mapped)
    except _Refused as refused:
        raise UserError(f"{path} {refused}") from None
    except _DAMAGE as error:
        shown = " ".join(str(error).split()) or "it ends too early"
        raise UserError(
            f"{path} is damaged or no file of torch.save ({type(error).__name__}: {shown}): copy or download it anew."
        ) from error
    raise UserError(f"{path} is no file of torch.save: it begins with {start!r}, neither a zip archive nor a pickle.")


def _read_zip(stream: io.BufferedReader, size: int) -> Any:
    with zipfile.ZipFile(stream) as archive:
        records = {info.filename: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in records.values()):
            raise _Refused("is a compressed zip archive, which torch.save never writes: save the weights again.")
        if sum(info.file_size for info in records.values()) > size:
            raise _Refused("claims to hold more data than its own size: copy or download it anew.")
        roots = [
            name.removesuffix("data.pkl") for name in records if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        if len(roots) != 1:
            raise _Refused("is a zip archive, but not of torch.save: it has no data.pkl.")
        root = roots[0]
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in records else b"little"
        _check_byte_order(order.strip().decode() == sys.byteorder)
        saved = _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl"))).load()
        storages: dict[str, np.ndarray] = {}

        def storage(wanted: _Storage) -> np.ndarray:
            if wanted.key not in storages:
                storages[wanted.key] = np.frombuffer(archive.read(f"{root}data/{wanted.key}"), np.uint8)
            return storages[wanted.key]

        return _resolve(saved, storage)


def _read_legacy(stream: mmap.mmap) -> Any:
    def load() -> Any:
        return _Unpickler(stream).load()

    if load() != _MAGIC or load() != _VERSION:
        raise _Refused("is a pickle, but not of torch.save: save the weights with torch.save or safetensors.")
    system = load()
    _check_byte_order(system["little_endian"] == (sys.byteorder == "little"))
    saved, keys = load(), load()
    wanted = {}
    for tensor in _tensors(saved):
        wanted.setdefault(tensor.storage.key, tensor.storage)
    storages = {}
    for key in keys:
        (count,) = struct.unpack("<q", stream.read(8))
        if key not in wanted:
            raise _Refused(f"holds a storage {key!r} that no tensor uses, so its size is not known: save it anew.")
        size = count * wanted[key].dtype.itemsize
        if count < 0 or stream.tell() + size > len(stream):
            raise _Refused("is truncated: copy or download it anew.")
        storages[key] = np.frombuffer(stream.read(size), np.uint8)
    if stream.tell() != len(stream):
        raise _Refused(f"goes on for {len(stream) - stream.tell()} bytes behind its last tensor: copy it anew.")
    return _resolve(saved, lambda storage: storages[storage.key])


def _check_byte_order(same: bool) -> None:
    if not same:
        raise _Refused(
            f"was not written on a {sys.byteorder}-endian machine like this one: save it again on such a one."
        )


def _tensors(saved: Any) -> list[_Tensor]:
    found: list[_Tensor] = []
    _visit(saved, lambda tensor: found.append(tensor), {})
    return found


def _resolve(saved: Any, storage: Any) -> Any:
    return _visit(saved, lambda tensor: _as_array(tensor, storage(tensor.storage)), {})


def _visit(value: Any, leaf: Any, done: dict[int, Any], depth: int = 0) -> Any:
    """`value` with leaf(tensor) for each tensor; what is shared is visited once, what contains itself is refused."""
    if isinstance(value, _Storage | _ScalarType | np.dtype) or callable(value):
        raise ValueError("a type or a storage without a tensor")
    if not isinstance(value, dict | list | tuple):
        return value
    if id(value) in done:
        if done[id(value)] is None:
            raise ValueError("a container that contains itself")
        return done[id(value)]
    if depth > 100:
        raise ValueError("containers nested more than 100 deep")
    done[id(value)] = None
    if isinstance(value, _Tensor):
        result = leaf(value)
    elif isinstance(value, dict):
        result = {key: _visit(inner, leaf, done, depth + 1) for key, inner in value.items()}
    else:
        result = type(value)(_visit(inner, leaf, done, depth + 1) for inner in value)
    done[id(value)] = result if result is not None else ()
    return result


def _as_array(tensor: _Tensor, content: np.ndarray) -> np.ndarray:
    """View of a storage's bytes; every element that the tensor can reach must lie inside."""
    dtype = tensor.storage.dtype
    if content.size != tensor.storage.count * dtype.itemsize:
        raise _Refused(
            f"is damaged: storage {tensor.storage.key!r} has {content.size} bytes: copy or download it anew."
        )
    last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
    if 0 not in tensor.shape and last >= tensor.storage.count:
        raise _Refused(f"is damaged: a tensor reaches beyond storage {tensor.storage.key!r}: copy or download it anew.")
    if 0 in tensor.shape:
        return np.empty(tensor.shape, dtype)
    strides = tuple(step * dtype.itemsize for step in tensor.stride)
    start = content.view(dtype)[tensor.offset :]
    return np.lib.stride_tricks.as_strided(start, tensor.shape, strides, writeable=False)


class _Unpickler(_PYTHONS_UNPICKLER):
    """Python's own unpickler (not the C one, which trusts sizes), without what a state dict does not need.

    Every name that a pickle can reach is a stand-in of this file, and no attribute of anything can be set.
    """

    dispatch: dict[int, Any] = {  # noqa: RUF012
        vars(pickle)[name][0]: _PYTHONS_UNPICKLER.dispatch[vars(pickle)[name][0]] for name in _OPCODES
    }

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _STORAGES:
            return _STORAGES[full]
        if full not in _STAND_INS:
            name = " ".join(full.split())
            raise _Refused(f"asks for {name}, but only tensors in plain containers are read: save its state_dict().")
        return _STAND_INS[full]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str) or any(view):
            raise ValueError(f"unknown kind of storage {pid!r}")
        return _Storage(key, dtype, _natural(count))

    def load_build(self) -> None:
        """Attributes of an OrderedDict (`_metadata` of a state dict) are dropped; nothing else may have any."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], _ScalarType):
            self.stack[-1] = _ScalarType(self.stack[-1].code, str(state[1]))
        elif not isinstance(self.stack[-1], collections.OrderedDict):
            raise ValueError(f"a {type(self.stack[-1]).__name__} with attributes")

    dispatch[pickle.BUILD[0]] = load_build


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    if not isinstance(shape, tuple) or not isinstance(stride, tuple) or len(shape) != len(stride):
        raise ValueError("a tensor whose sizes and strides differ in number")
    return _Tensor(storage, _natural(offset), tuple(map(_natural, shape)), tuple(map(_natural, stride)))


def _rebuild_parameter(tensor: Any, *_: Any) -> _Tensor:
    if not isinstance(tensor, _Tensor):
        raise ValueError("a parameter without a tensor")
    return tensor


class _ScalarType(NamedTuple):
    """A numpy dtype of numbers: training scripts store accuracies as numpy scalars."""

    code: str
    order: str = "|"


def _scalar_type(code: Any, *_: Any) -> _ScalarType:
    if code not in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"):
        raise ValueError(f"a numpy scalar of type {code!r}")
    return _ScalarType(code)


def _scalar(kind: Any, content: Any) -> Any:
    return np.frombuffer(content, np.dtype(kind.order + kind.code), 1)[0].item()


def _encode(text: Any, encoding: Any) -> bytes:
    return str(text).encode("latin1" if encoding == "latin1" else "ascii")


def _ordered_dict(*pairs: Any) -> collections.OrderedDict:
    return collections.OrderedDict(*pairs)


_STAND_INS = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "numpy.dtype": _scalar_type,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "_codecs.encode": _encode,
}
