"""Runs `python -m fewshot.main` as a user does, at the tiniest sizes, on one or more virtual devices."""

import collections
import importlib
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from common import loop, phases
from fewshot import experiment
from tests.common.toys import running

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = {
    "glyphs.difficulty": "easy",
    "glyphs.instances_per_class": 20,
    "image_size": 16,
    "queries": 3,
    "tasks_per_step": 2,
    "filters": 4,
    "context_size": 6,
    "eval_episodes": 6,
    "test_episodes": 6,
    "episodes_per_batch": 4,
    "propagation.neighbours": 6,
    "propagation.initial_sigma": 1.0,
    "convolution": "patches",
    "tensorboard": False,
}


# jax logs what it compiles, on a handler of its own that the program's verbosity does not reach.
LOG_COMPILES = {"JAX_LOG_COMPILES": "1", "JAX_LOGGING_LEVEL": "WARNING"}


class Run(NamedTuple):
    """A finished run: its work directory, the fields it was started with, and what it printed."""

    folder: Path
    fields: dict[str, Any]
    out: str
    compiled: collections.Counter[str]


def config(name: str, **fields: Any) -> ConfigDict:
    """The config of fewshot/configs/<name>.py at tiny size, with some (dotted) fields changed."""
    built = importlib.import_module(f"fewshot.configs.{name}").get_config("smoke")
    built.update_from_flattened_dict(TINY | fields)
    return built.lock()


def train(config: ConfigDict, folder: Path) -> loop.Outcome:
    """Train in this process."""
    return phases.train(phases.plan(config, experiment.build, None), config, folder)[""]


def flags_of(name: str, folder: Path, *flags: str, **fields: Any) -> list[str]:
    """The flags of a tiny run: the smoke variant of a config, or a config file of the test's own."""
    file = name if ".py" in name else f"fewshot/configs/{name}.py:smoke"
    return [*running.flags(file, folder, TINY | fields), *flags]


def start(name: str, folder: Path, *flags: str, devices: int = 1, **fields: Any) -> subprocess.Popen:
    """Start it."""
    return running.start_module("fewshot.main", *flags_of(name, folder, *flags, **fields), devices=devices)


def run(name: str, folder: Path, *flags: str, devices: int = 1, code: int = 0, **fields: Any) -> tuple[str, str]:
    """Start it and wait for its end; (standard output, standard error)."""
    return running.finish(start(name, folder, *flags, devices=devices, **fields), code)


def compiled(error: str) -> collections.Counter[str]:
    """How often each function was compiled, from the standard error of a process with LOG_COMPILES."""
    return collections.Counter(re.findall(r"^WARNING:.*: Compiling jit\((\w+)\)", error, re.MULTILINE))
