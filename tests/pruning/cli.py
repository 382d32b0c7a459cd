"""Runs `python -m pruning.main` as a user does, at the tiniest sizes."""

import functools
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pruning.configs import ekg
from tests.common.toys import running

TINY: dict[str, Any] = {"glyphs.difficulty": "easy", "tensorboard": False}


def config(**fields: Any) -> ConfigDict:
    """The smoke variant with some (dotted) fields changed."""
    built = ekg.get_config("smoke")
    built.update_from_flattened_dict(TINY | fields)
    return built.lock()


def flags(folder: Path, file: str = "ekg", **fields: Any) -> list[str]:
    return running.flags(f"pruning/configs/{file}.py:smoke", folder, TINY | fields)


start = functools.partial(running.start_module, "pruning.main")
run = functools.partial(running.run_module, "pruning.main")
