"""Fashion-MNIST from its four IDX files, or from a prepared tensorflow-datasets copy."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from common.data import tfds_source
from common.data.dataset import Dataset, Split, make_dataset
from common.data.images import fit_arrays
from common.data.missing import missing_data
from common.data.request import Request
from common.errors import UserError

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_PREFIX = {"train": "train", "test": "t10k"}


def load(request: Request) -> Dataset:
    """Fashion-MNIST for classification: 'train' (60 000) and 'test' (10 000) as published.

    Looks for `{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]` in `path`, or without a path in the folder of Debian's
    package dataset-fashion-mnist, then for a prepared tensorflow-datasets copy.

    Raises:
      UserError: nothing found, a damaged file, or any option.
    """
    request.read_options({})
    folder = Path(request.path).expanduser() if request.path else DEBIAN_FOLDER
    if _find(folder, "train-images-idx3-ubyte") is None:
        if tfds_source.find_prepared(request.name, request.path) is not None:
            return tfds_source.load(request)
        raise missing_data(
            request.name,
            [folder, tfds_source.data_dir(request.path) / request.name],
            "`apt-get install dataset-fashion-mnist` puts its files where they are found, any folder with the four "
            f"IDX files can be named by --config.dataset_path, or {tfds_source.how_to_prepare(request.name)}",
        )
    splits = {}
    for split, prefix in _PREFIX.items():
        images = _read_idx(folder, f"{prefix}-images-idx3-ubyte", 3)
        labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte", 1)
        if len(images) != len(labels) or not len(images):
            raise UserError(
                f"{folder} holds {len(images)} {split} images but {len(labels)} labels: copy the four files anew."
            )
        splits[split] = Split(
            fit_arrays(images, request.image_size, request.channels), labels.astype(np.int32), CLASS_NAMES
        )
    source = "Xiao, Rasul, Vollgraf 2017 (Zalando Research)"
    return make_dataset(request.name, splits, licence="MIT", source=source)


def _find(folder: Path, stem: str) -> Path | None:
    return next((file for file in (folder / stem, folder / f"{stem}.gz") if file.is_file()), None)


def _read_idx(folder: Path, stem: str, rank: int) -> UInt8[np.ndarray, ...]:
    """Array of one IDX file: 2 zero bytes, type 8 (uint8), rank, big-endian sizes, then the values."""
    file = _find(folder, stem)
    if file is None:
        raise UserError(f"file {folder / stem}[.gz] is missing: the four Fashion-MNIST files must lie in one folder.")
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"file {file} cannot be read ({error}): copy or download it anew.") from error
    header = 4 + 4 * rank
    if content[:4] != bytes((0, 0, 8, rank)) or len(content) < header:
        raise UserError(f"file {file} is no IDX file of uint8 values with {rank} axes: copy or download it anew.")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", rank, 4))
    if len(content) - header != int(np.prod(shape)):
        raise UserError(
            f"file {file} is damaged: {len(content) - header} bytes follow its header instead of "
            f"{int(np.prod(shape))}; copy or download it anew."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
