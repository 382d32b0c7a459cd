"""The folder of one run: config.json, environment.json, metrics.jsonl, checkpoints/, figures/, DONE."""

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock
import jax
from ml_collections import ConfigDict

from common import config as configs
from common.errors import UserError

_PARTIAL = ".partial"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "pillow", "matplotlib")


def default_path(config: ConfigDict, evaluation_fields: Collection[str] = ()) -> Path:
    """`runs/<name>-seed<seed>-<hash of the config>`: the same command resumes, another config goes elsewhere.

    `evaluation_fields` here and below: the fields that only the evaluation of a finished run reads, as a method
    declares them. They are empty in training, and may be set in an evaluation of the same run.
    """
    stored = json.loads(configs.to_json(config))
    fields = {name: value for name, value in stored.items() if name not in evaluation_fields}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]
    variant = f"-{config.variant}" if config.get("variant") else ""
    return Path("runs") / f"{config.name}{variant}-seed{config.seed}-{digest}"


def evaluation_name(config: ConfigDict, evaluation_fields: Collection[str] = ()) -> str:
    """'eval', or with what the evaluation fields say behind it: 'eval-digits', 'eval-folder-photos'."""
    values = [Path(str(config[field])).resolve().name for field in evaluation_fields if config[field]]
    return "-".join(["eval", *(re.sub(r"[^\w.]+", "_", value) for value in values)])


def check_unset(config: ConfigDict, evaluation_fields: Collection[str]) -> None:
    """Raise UserError for a field of the evaluation that is set in training."""
    for field in evaluation_fields:
        configs.check(config, field, not config[field], "must be left empty in training: it is for finished runs")


def open_for_training(path: Path, config: ConfigDict) -> bool:
    """Make the folder, or check that it belongs to this very config; whether it is new. Raises UserError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        stored = read_config(path)
        if stored is None:
            others = sorted(
                entry.name for entry in path.iterdir() if not entry.name.startswith(".") and entry.suffix != _PARTIAL
            )
            if others:
                raise UserError(
                    f"The folder {path} holds {others[0]!r} but no config.json, so it is no run of this project; "
                    "choose another --workdir."
                )
            _write(path / "config.json", configs.to_json(config))
        else:
            _check_same(path, stored, config)
    except OSError as error:
        raise _unusable(path, error) from error
    return stored is None


def give_up(path: Path) -> None:
    """Remove a new folder in which nothing was trained: a mistake in the config must not keep the name occupied."""
    inside = sorted(path.rglob("*"), reverse=True)
    if all(entry.is_dir() or entry.name in ("config.json", "environment.json", ".lock") for entry in inside):
        for entry in inside:
            entry.rmdir() if entry.is_dir() else entry.unlink()
        with suppress(OSError):  # a link, or where something is mounted
            path.rmdir()


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """The folder for this process alone, and its session written to environment.json.

    The system lets go of what a killed process held. Raises UserError if another process trains there.
    """
    lock = filelock.FileLock(path / ".lock", timeout=0, fallback_to_soft=False)
    try:
        try:
            lock.acquire()
        except NotImplementedError:  # some network and cloud drives
            print(f"Warning: the file system of {path} has no locks; do not start a second run there.", file=sys.stderr)
        _record_environment(path / "environment.json")
    except filelock.Timeout as error:
        raise UserError(
            f"Another process is training in {path}; wait for it, stop it, or choose another --workdir."
        ) from error
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        yield
    finally:
        lock.release()


def _unusable(path: Path, error: OSError) -> UserError:
    return UserError(f"The work directory {path} cannot be used ({error.strerror}); choose another --workdir.")


def check_config(path: Path, config: ConfigDict, evaluation_fields: Collection[str] = ()) -> None:
    """Check that the folder holds a run of this config, but for fields of the evaluation. Raises UserError."""
    try:
        stored = read_config(path)
    except OSError as error:
        raise UserError(f"The work directory {path} cannot be read ({error.strerror}); check --workdir.") from error
    if stored is None:
        raise UserError(f"There is no run in {path}; train first with the same command and --mode=train.")
    _check_same(path, stored, config, evaluation_fields)


def is_done(path: Path) -> bool:
    return (path / "DONE").exists()


def write_results(path: Path, name: str, results: dict[str, float]) -> Path:
    """Write `results` to `<name>.json`, or `<name>-2.json` and so on where that exists with other content."""
    text = json.dumps(results, indent=2, sort_keys=True) + "\n"
    file, number = path / f"{name}.json", 1
    while file.exists() and file.read_text() != text:
        number += 1
        file = path / f"{name}-{number}.json"
    _write(file, text)
    return file


def mark_done(path: Path) -> None:
    _write(path / "DONE", "")


def read_finished(path: Path, name: str) -> tuple[ConfigDict, dict[str, Any]]:
    """(config, what the finished run in `path` says of itself in its file `name`). Raises UserError."""
    file, config = path / name, read_config(path)
    if config is None or not file.is_file():
        raise UserError(f"{path} is no finished run of this method: it has no {name}; train to the end first.")
    try:
        description = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(
            f"{file} is not readable as JSON ({error}); restore it, or remove {path / 'DONE'} and run the command of "
            "the training again, which writes it."
        ) from error
    return config, description


def read_config(path: Path) -> ConfigDict | None:
    """The config of the run in `path`, None if there is no run. Raises UserError."""
    file = path / "config.json"
    if not file.exists():
        return None
    try:
        return configs.from_json(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not readable as JSON ({error}); restore it or choose another --workdir.") from error


def _check_same(path: Path, stored: ConfigDict, config: ConfigDict, evaluation_fields: Collection[str] = ()) -> None:
    changed = configs.differences(stored, config, ignore=evaluation_fields)
    if changed:
        raise UserError(
            f"The run in {path} has another config ({'; '.join(changed[:5])}{'; ...' if len(changed) > 5 else ''}); "
            "choose another --workdir, or start there from this run with --config.resume_from."
        )


def _record_environment(file: Path) -> None:
    """Append this session to the list: a run may be resumed elsewhere."""
    try:
        sessions = json.loads(file.read_text()) if file.exists() else []
    except ValueError:
        sessions = None
    if not isinstance(sessions, list):
        raise UserError(f"{file} is not a list of sessions; remove or restore it.")
    sessions.append(
        {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {name: metadata.version(name) for name in _PACKAGES},
            "devices": [device.device_kind for device in jax.devices()],
            "processes": jax.process_count(),
            "cpu_cores": os.cpu_count(),
            "git": _git_state(),
        }
    )
    _write(file, json.dumps(sessions, indent=2))


def _git_state() -> str:
    """Commit of the checkout, with "-dirty" where files differ; "unknown" outside a checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    partial = file.with_name(file.name + _PARTIAL)
    partial.write_text(text)
    partial.replace(file)
