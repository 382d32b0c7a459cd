"""Runs `python -m multitask.main` as a user does, at the tiniest sizes."""

import functools
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from multitask.configs import tte
from tests.common.toys import running

TINY: dict[str, Any] = {"glyphs.difficulty": "easy", "tensorboard": False}


def config(variant: str = "smoke", **fields: Any) -> ConfigDict:
    """A variant of the config with some (dotted) fields changed."""
    built = tte.get_config(variant)
    built.update_from_flattened_dict(TINY | fields)
    return built.lock()


def flags(folder: Path, file: str = "multitask/configs/tte.py:smoke", **fields: Any) -> list[str]:
    return running.flags(file, folder, TINY | fields)


start = functools.partial(running.start_module, "multitask.main")
run = functools.partial(running.run_module, "multitask.main")
