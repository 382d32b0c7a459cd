"""The contract between a method and the one training loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import optax
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from common.metrics import Sums

PyTree = Any


class TrainState(flax.struct.PyTreeNode):
    """All that training changes, in fixed shapes. Two optimisers are a dict in `opt_state`."""

    step: Any  # int32 [], steps done; counted by the loop. Any, because shapes and shardings are put in its place too
    params: PyTree
    opt_state: PyTree
    model_state: PyTree  # BatchNorm statistics, moving averages, memory, search history ...


TrainStep = Callable[[TrainState, PyTree, PyTree, Array], tuple[TrainState, Sums]]


@dataclass(frozen=True)
class Experiment:
    """Data and pure functions; `common.loop.fit` does the rest.

    `data` is an argument of every compiled function and never captured by one. Exactly one of `batch` (gathered inside
    the compiled step from data on the device) and `host_batch` (NumPy arrays of the whole global batch, or
    `parallel.Rows` that each process makes its part of; a pure function of seed and step) is given. Every leaf of a
    batch has the global batch in front.
    """

    data: PyTree
    init: Callable[[PyTree, Array], TrainState]  # (data, key); traceable, on resume only its shapes are evaluated
    train_step: TrainStep | Mapping[int, TrainStep]  # or {first step: the function from there on}
    evaluate: Callable[[TrainState, PyTree], dict[str, float]]
    batch: Callable[[PyTree, Int[Array, ""], Array], PyTree] | None = None  # (data, step, key)
    host_batch: Callable[[int, int], PyTree] | None = None  # (seed, step)
    batch_field: str = "batch_size"  # the config field that a batch's size comes from, for messages
    host_step: bool = False  # leave `train_step` uncompiled: host decisions around compiled pieces
    refresh: Callable[[TrainState, PyTree, int, Array], TrainState] | None = None  # host code before due steps
    refresh_every: int = 0  # 0: only before step 0
    done: Callable[[TrainState], bool] | None = None  # an end before num_steps
    finish: Callable[[TrainState, PyTree, Path], dict[str, float]] | None = None  # figures, tables; returns results
    read_weights: Callable[[Path, PyTree], PyTree] | None = None  # (file, params' shapes): `init_from` a foreign file

    def __post_init__(self):
        if (self.batch is None) == (self.host_batch is None):
            raise ValueError("An Experiment takes either batch or host_batch.")
        if isinstance(self.train_step, Mapping) and 0 not in self.train_step:
            raise ValueError("A mapping of train steps begins with the one for step 0.")

    def step_function(self, step: int) -> tuple[int, TrainStep]:
        """The train step in force at `step`, and the step it came into force."""
        if not isinstance(self.train_step, Mapping):
            return 0, self.train_step
        since = max(first for first in self.train_step if first <= step)
        return since, self.train_step[since]


class Phase(NamedTuple):
    """One stage of a run (teacher, then student): built lazily with the states of the stages before it."""

    name: str
    build: Callable[[ConfigDict, Mapping[str, TrainState]], Experiment]
    overrides: Mapping[str, Any]
    reported: bool = False  # a result of its own: --mode=eval goes through all of these, without any through the last


def apply_gradients(state: TrainState, optimizer: optax.GradientTransformation, gradients: PyTree) -> TrainState:
    """One step of a single optimiser."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    return state.replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state)
