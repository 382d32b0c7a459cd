"""A finished run as a function from pixels to scores. Nothing is read but the run's work directory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from anomaly import setup, train
from anomaly.evaluation import Calibration, read_calibration
from anomaly.train import Recipe
from common import phases
from common.data.anomaly import Frame
from common.errors import UserError
from common.workdir import read_config


class Model(NamedTuple):
    """What scoring needs; `variables` are arguments of compiled programs, never constants in them."""

    config: ConfigDict
    recipe: Recipe
    variables: dict[str, Any]  # descriptor and radius; backbone and bank
    calibration: Calibration
    frame: Frame  # of pictures that are scored: RD-MVTec's training turns are left out, its crop is the middle


def load_model(workdir: Path) -> Model:
    """The latest state of the run in `workdir`, one category of a run over several.

    Raises:
      UserError: no run of CFA, one that has not ended, or damaged files.
    """
    config = read_config(workdir)
    inside = sorted(path.parent.name for path in workdir.glob("*/config.json")) if workdir.is_dir() else []
    if config is None:
        hint = f"; it holds runs of {', '.join(inside)}: choose one" if inside else ""
        raise UserError(f"--workdir={workdir} holds no run (there is no config.json){hint}.")
    if "gamma_c" not in config or "crop" not in config:
        raise UserError(f"--workdir={workdir} is a run of {config.get('name', 'something else')!r}, not of CFA.")
    if inside:
        raise UserError(f"--workdir={workdir} is a run of several: choose one, such as {workdir / inside[0]}.")
    calibration = read_calibration(workdir)
    state = phases.read_state(workdir)
    recipe = setup.make_recipe(config, setup.make_backbone(config), cached=False)
    variables = {"params": state.params, **state.model_state}
    return Model(config, recipe, variables, calibration, Frame(config.resize, tuple(config.crop)))


def score_variables(recipe: Recipe, variables: dict[str, Any], images: Any) -> train.Scores:
    """`train.score_images` of the variables in one tree."""
    return train.score_images(recipe, variables["params"], variables, images)


class Scorer:
    """Scores images in batches of one size; the last is filled up, so that one program does all."""

    def __init__(self, model: Model, batch_size: int):
        self._model, self._batch_size = model, batch_size
        self._compiled = jax.jit(lambda variables, images: score_variables(model.recipe, variables, images))

    def __call__(self, images: UInt8[np.ndarray, "n H W 3"]) -> Iterator[tuple[Float[np.ndarray, "H W"], float]]:
        """(map, score) of every image."""
        for first in range(0, len(images), self._batch_size):
            part = images[first : first + self._batch_size]
            filled = np.concatenate([part, np.repeat(part[-1:], self._batch_size - len(part), axis=0)])
            scores = jax.device_get(self._compiled(self._model.variables, filled))
            yield from zip(scores.maps[: len(part)], map(float, scores.images[: len(part)]), strict=True)
