"""Runs `python -m anomaly.main` as a user does, at the tiniest sizes, on one or more virtual devices."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from anomaly import experiment
from anomaly.configs import cfa
from common import loop, phases
from tests.common.toys import running

ROOT = Path(__file__).parents[2]
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
    """Start the smoke variant, with little optimisation by the compiler: these tests compile more than they compute."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    overrides = [f"--config.{field}={value}" for field, value in (TINY | fields).items()]
    arguments = ["--config=anomaly/configs/cfa.py:smoke", *overrides, f"--workdir={folder}", *flags]
    command = [sys.executable, "-m", "anomaly.main", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def run(folder: Path, *flags: str, devices: int = 1, code: int = 0, **fields: Any) -> tuple[str, str]:
    """Start it and wait for its end; (standard output, standard error)."""
    return running.finish(start(folder, *flags, devices=devices, **fields), code)
