"""Runs `python -m anomaly.main` as a user does, at the tiniest sizes, on one or more virtual devices."""

import subprocess
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from anomaly import experiment
from anomaly.configs import cfa
from common import loop, phases
from tests.common.toys import running

TINY: dict[str, Any] = {
    "textures.train_images": 16,
    "batch_size": 8,
    "num_epochs": 6,
    "eval_batch_size": 8,
    "tensorboard": False,
}


def config(variant: str = "smoke", **fields: Any) -> ConfigDict:
    """The config at tiny size, with some (dotted) fields changed."""
    built = cfa.get_config(variant)
    built.update_from_flattened_dict(TINY | fields)
    return built.lock()


def train(config: ConfigDict, folder: Path) -> dict[str, loop.Outcome]:
    """Train in this process."""
    return phases.train(experiment.phases(config), config, folder)


def start(folder: Path, *flags: str, devices: int = 1, **fields: Any) -> subprocess.Popen:
    """Start the smoke variant."""
    arguments = running.flags("anomaly/configs/cfa.py:smoke", folder, TINY | fields)
    return running.start_module("anomaly.main", *arguments, *flags, devices=devices)


def run(folder: Path, *flags: str, devices: int = 1, code: int = 0, **fields: Any) -> tuple[str, str]:
    """Start it and wait for its end; (standard output, standard error)."""
    return running.finish(start(folder, *flags, devices=devices, **fields), code)
