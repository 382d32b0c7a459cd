"""Runs `python -m distill.main` as a user does, at the tiniest sizes; builds phases without running them."""

import functools
import importlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from common import phases
from common.experiment import Experiment, TrainState
from distill import experiment
from tests.common.toys import running

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.stem for path in (ROOT / "distill" / "configs").glob("*.py") if path.stem != "__init__")
TINY: dict[str, Any] = {
    **{"student.width": 0.0625, "teacher.width": 0.0625, "glyphs.difficulty": "easy", "tensorboard": False}
}


def config(name: str, **fields: Any) -> ConfigDict:
    """The smoke variant of distill/configs/<name>.py with some (dotted) fields changed."""
    built = importlib.import_module(f"distill.configs.{name}").get_config("smoke")
    built.update_from_flattened_dict(TINY | fields)
    return built.lock()


def flags(name: str, folder: Path, **fields: Any) -> list[str]:
    file = name if ".py" in name else f"distill/configs/{name}.py:smoke"
    return running.flags(file, folder, TINY | fields)


start = functools.partial(running.start_module, "distill.main")
run = functools.partial(running.run_module, "distill.main")


def built_phases(own: ConfigDict) -> dict[str, Experiment]:
    """Every phase of a config as it is built; the phases before it end with zeros in place of trained weights."""
    found: dict[str, Experiment] = {}
    finished: dict[str, TrainState] = {}
    for phase in experiment.phases(own):
        found[phase.name] = phase.build(phases.phase_config(own, phase), finished)
        shapes = jax.eval_shape(found[phase.name].init, found[phase.name].data, jax.random.key(0))
        finished[phase.name] = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return found
