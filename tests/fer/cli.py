"""Runs `python -m fer.main` as a user does, at the tiniest sizes."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tests.common.toys import running

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = {"tensorboard": False}
# As in the other tests of command lines: these compile more than they compute.
FAST = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def config(name: str = "elim", **fields: Any) -> ConfigDict:
    """The smoke variant of fer/configs/<name>.py with some (dotted) fields changed."""
    built = importlib.import_module(f"fer.configs.{name}").get_config("smoke")
    built.update_from_flattened_dict(TINY | fields)
    return built.lock()


def flags(name: str, folder: Path, **fields: Any) -> list[str]:
    file = name if ".py" in name else f"fer/configs/{name}.py:smoke"
    return [f"--config={file}", *(f"--config.{k}={v}" for k, v in (TINY | fields).items()), f"--workdir={folder}"]


def start(program: str, *arguments: str, devices: int = 1) -> subprocess.Popen:
    """`python -m fer.<program>` with these arguments."""
    environment = os.environ | FAST | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command, pipe = [sys.executable, "-m", f"fer.{program}", *arguments], subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def run(program: str, *arguments: str, devices: int = 1, code: int = 0) -> tuple[str, str]:
    """Start it and wait for its end; (standard output, standard error)."""
    return running.finish(start(program, *arguments, devices=devices), code)


def logged_step(folder: Path) -> int:
    """The step of the last whole line of metrics.jsonl, 0 before the first."""
    lines = running.metrics(folder) if (folder / "metrics.jsonl").exists() else []
    return lines[-1]["step"] if lines else 0
