"""Writes files of torch.save without PyTorch, so that damage can be made to order."""

import io
import pickle
import struct
import zipfile
from typing import NamedTuple

import numpy as np

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
STORAGE_NAMES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage",
    "complex128": "ComplexDoubleStorage",
}


class Global(NamedTuple):
    """A name that the reader has to look up."""

    module: str
    name: str


class Call(NamedTuple):
    """function(*arguments), then the attributes in `state`."""

    function: Global
    arguments: tuple
    state: object = None


class Storage(NamedTuple):
    key: str
    content: np.ndarray  # 1-D
    count: object = None  # what the file says; None: the truth
    view: object = None  # of the legacy form


REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
ORDERED_DICT = Global("collections", "OrderedDict")


def tensor(storage, offset, shape, stride):
    return Call(REBUILD, (storage, offset, shape, stride, False, Call(ORDERED_DICT, ())))


def whole(key, array):
    """A contiguous tensor with a storage of its own."""
    array = np.asarray(array)
    strides = tuple(step // array.itemsize for step in np.ascontiguousarray(array).reshape(array.shape).strides)
    return tensor(Storage(key, array.reshape(-1)), 0, array.shape, strides)


class _Pickler(pickle._Pickler):
    def __init__(self, stream, legacy):
        super().__init__(stream, protocol=2)
        self.legacy, self.storages = legacy, {}

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        self.storages[obj.key] = obj.content
        kind = Global("torch", STORAGE_NAMES[obj.content.dtype.name])
        count = obj.content.size if obj.count is None else obj.count
        return ("storage", kind, obj.key, "cpu", count, *([obj.view] if self.legacy else []))

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)


def pickled(value, legacy=False):
    """(bytes, {key: storage content}) of one object."""
    stream = io.BytesIO()
    pickler = _Pickler(stream, legacy)
    pickler.dump(value)
    return stream.getvalue(), pickler.storages


def write_zip(path, value=None, data=None, byteorder="little", compression=zipfile.ZIP_STORED, extra=()):
    """The form since PyTorch 1.6; `data` replaces the pickle."""
    content, storages = pickled(value)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content if data is None else data)
        if byteorder:
            archive.writestr("archive/byteorder", byteorder)
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")
        for name, more in extra:
            archive.writestr(name, more)
    return path


def write_legacy(path, value=None, data=None, little_endian=True, magic=MAGIC, tail=b""):
    """The form before PyTorch 1.6; `data` replaces the fourth pickle."""
    content, storages = pickled(value, legacy=True)
    system = {"protocol_version": VERSION, "little_endian": little_endian, "type_sizes": {"int": 4}}
    parts = [pickle.dumps(part, 2) for part in (magic, VERSION, system)]
    parts += [content if data is None else data, pickle.dumps(list(storages), 2)]
    for array in storages.values():
        parts += [struct.pack("<q", array.size), array.tobytes()]
    path.write_bytes(b"".join(parts) + tail)
    return path
