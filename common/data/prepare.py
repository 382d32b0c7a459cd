"""Prepare a data set once, so that training and evaluation can read it.

python -m common.data.prepare --name=mini_imagenet --manual_dir=<folder or archive> [--data_dir=<where to>]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import lzma
import struct
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from common.data import built_source, tfds_source
from common.errors import UserError, did_you_mean

# What unpacking can raise; RuntimeError where a password is asked for or a kind of compression is unknown.
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, LookupError, OverflowError, RuntimeError, ValueError),
)
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags.")


def main(arguments: Sequence[str]) -> int:
    """Prepare the set that the flags name; the exit code: 2, and one sentence, for what the user can mend."""
    try:
        flags = _parse(arguments)
        data_dir = tfds_source.data_dir(flags.data_dir)
        done = tfds_source.find_prepared(flags.name, str(data_dir))
        if done is not None:
            print(f"{flags.name} is prepared already in {done}; remove that folder to prepare it anew.")
            return 0
        prepare(flags.name, data_dir, flags.manual_dir)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="python -m common.data.prepare", description=__doc__, allow_abbrev=False)
    known = [*built_source.ENTRIES, *tfds_source.ENTRIES]
    parser.add_argument("--name", required=True, help=f"one of {', '.join(known)}")
    parser.add_argument("--manual_dir", default="", help="folder or archive with the set's files, where you got them")
    parser.add_argument("--data_dir", default="", help="default: $TFDS_DATA_DIR, else ~/tensorflow_datasets")
    flags = parser.parse_args(arguments)
    if flags.name not in known:
        near = did_you_mean(flags.name, known)
        raise UserError(f"--name is {flags.name!r}{near}, but one of {', '.join(known)} is expected.")
    return flags


def prepare(name: str, data_dir: Path, manual_dir: str = "") -> Path:
    """Write data set `name` below `data_dir`, as array_record, and print what it holds; the folder it is in.

    Raises:
      UserError: nothing given to prepare it from, files of another layout, damaged or missing files, no space, or for
        sets that tensorflow-datasets downloads, no TensorFlow or no network.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        if name in tfds_source.ENTRIES:
            return _prepare_published(name, data_dir, manual_dir)
        given = Path(manual_dir).expanduser()
        builder_class = load_builder(name)
        if not manual_dir:
            trees = "; or ".join(layout.tree for layout in builder_class.layouts)
            raise UserError(f"--manual_dir is missing: the folder or archive that holds {name!r} as {trees}.")
        if not given.exists():
            raise UserError(f"{given} (--manual_dir), which should hold data set {name!r}, does not exist.")
        if given.is_dir():
            if not any(given.iterdir()):
                raise UserError(f"folder {given} (--manual_dir), which should hold data set {name!r}, is empty.")
            return _build(builder_class, data_dir, given)
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=f"unpacked-{name}-") as unpacked:
            _unpack(given, Path(unpacked))
            return _build(builder_class, data_dir, Path(unpacked))
    except OSError as error:
        raise UserError(f"data set {name!r} could not be prepared in {data_dir}: {error}.") from error


def load_builder(name: str) -> Any:
    """Our builder class of a data set."""
    module, _, builder = built_source.ENTRIES[name].builder.partition(":")
    return getattr(importlib.import_module(f"common.data.builders.{module}"), builder)


def _build(builder_class: Any, data_dir: Path, manual_dir: Path) -> Path:
    tfds = _quiet_tfds()
    builder = builder_class(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    _report(builder.name, Path(builder.data_dir), builder.counts)
    return Path(builder.data_dir)


def _quiet_tfds() -> Any:
    """tensorflow-datasets, with progress bars only where somebody looks at them."""
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    return tfds


def _report(name: str, folder: Path, counts: dict[str, Counter[str]]) -> None:
    print(f"{name} is prepared in {folder}:")
    for split, classes in counts.items():
        few, many = min(classes.values()), max(classes.values())
        per_class = f"{few} to {many}" if few < many else f"{few}"
        print(f"  {split}: {len(classes)} classes, {classes.total()} pictures, {per_class} a class")
    found = {split: len(classes) for split, classes in counts.items()}
    published = built_source.ENTRIES[name].classes
    if published and found != published:
        expected = ", ".join(f"{count} {split}" for split, count in published.items())
        print(f"Careful: the published split has {expected} classes, so results will not be comparable.")


def _unpack(archive: Path, folder: Path) -> None:
    if not archive.name.endswith(_ARCHIVES):
        raise UserError(f"{archive} (--manual_dir) is neither a folder nor an archive ({', '.join(_ARCHIVES)}).")
    print(f"Unpacking {archive} ...")
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as file:
                file.extractall(folder)
        else:
            with tarfile.open(archive) as file:
                file.extractall(folder, filter="data")
    except OSError as error:
        raise UserError(
            f"archive {archive} cannot be unpacked into {folder} ({error.strerror or error}): look whether there is "
            "room, or unpack it yourself and give the folder."
        ) from error
    except _DAMAGE as error:
        raise UserError(
            f"archive {archive} cannot be unpacked, it is damaged, encrypted or no archive: copy it anew, or unpack it "
            "yourself and give the folder."
        ) from error


def _prepare_published(name: str, data_dir: Path, manual_dir: str) -> Path:
    """Have tensorflow-datasets download and prepare one of its own."""
    if manual_dir:
        raise UserError(f"tensorflow-datasets downloads {name!r} by itself: leave --manual_dir out.")
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(f"to prepare {name!r}, TensorFlow is needed: pip install -e '.[data]', and run this again.")
    tfds = _quiet_tfds()
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    try:
        builder.download_and_prepare()
    except (OSError, RuntimeError, ValueError) as error:  # network errors are OSErrors
        raise UserError(f"{name!r} could not be downloaded and prepared ({error}): is there a network?") from error
    print(f"{name} is prepared in {builder.data_dir}.")
    return Path(builder.data_dir)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
