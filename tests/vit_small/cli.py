"""Runs `python -m vit_small.main` as a user does, at the tiniest sizes."""

import importlib
import subprocess
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tests.common.toys import running

TINY: dict[str, Any] = {"glyphs.difficulty": "easy", "tensorboard": False}


def config(name: str = "vit", **fields: Any) -> ConfigDict:
    """The smoke variant of vit_small/configs/<name>.py with some (dotted) fields changed."""
    built = importlib.import_module(f"vit_small.configs.{name}").get_config("smoke")
    built.update_from_flattened_dict(TINY | fields)
    return built.lock()


def flags(name: str, folder: Path, **fields: Any) -> list[str]:
    file = name if ".py" in name else f"vit_small/configs/{name}.py:smoke"
    return running.flags(file, folder, TINY | fields)


def start(program: str, *arguments: str, devices: int = 1) -> subprocess.Popen:
    """`python -m vit_small.<program>` with these arguments."""
    return running.start_module(f"vit_small.{program}", *arguments, devices=devices)


def run(program: str, *arguments: str, devices: int = 1, code: int = 0) -> tuple[str, str]:
    """Start it and wait for its end; (standard output, standard error)."""
    return running.run_module(f"vit_small.{program}", *arguments, devices=devices, code=code)
