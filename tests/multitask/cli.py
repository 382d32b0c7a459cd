"""Runs `python -m multitask.main` as a user does, at the tiniest sizes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from multitask.configs import tte
from tests.common.toys import running

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = {"glyphs.difficulty": "easy", "tensorboard": False}
# These compile more than they compute.
FAST = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def config(variant: str = "smoke", **fields: Any) -> ConfigDict:
    """A variant of the config with some (dotted) fields changed."""
    built = tte.get_config(variant)
    built.update_from_flattened_dict(TINY | fields)
    return built.lock()


def flags(folder: Path, file: str = "multitask/configs/tte.py:smoke", **fields: Any) -> list[str]:
    return [f"--config={file}", *(f"--config.{k}={v}" for k, v in (TINY | fields).items()), f"--workdir={folder}"]


def start(*arguments: str, devices: int = 1) -> subprocess.Popen:
    """`python -m multitask.main` with these arguments."""
    environment = os.environ | FAST | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command, pipe = [sys.executable, "-m", "multitask.main", *arguments], subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def run(*arguments: str, devices: int = 1, code: int = 0) -> tuple[str, str]:
    """Start it and wait for its end; (standard output, standard error)."""
    return running.finish(start(*arguments, devices=devices), code)
