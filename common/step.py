"""The train step as one compiled program (draw the batch, split it over the devices, step), and its metrics' sums."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from common import parallel, rng
from common.experiment import Experiment, TrainState, TrainStep

PyTree = Any
_NEVER = np.iinfo(np.int32).max


class Accumulated(NamedTuple):
    """Metric sums since the last log line, kept on the device so that no step waits for the host."""

    sums: dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
    first_bad_step: Int[Array, ""]  # the first step with a non-finite metric, else the largest int32


@jax.jit
def accumulate(accumulated: Accumulated, metrics: dict[str, tuple[Any, Any]], step: Int[Array, ""]) -> Accumulated:
    """Add one step's (sum, count) pairs."""
    sums, finite = dict(accumulated.sums), jnp.array(True)
    for name, (total, count) in metrics.items():
        total, count = jnp.asarray(total, jnp.float32), jnp.asarray(count, jnp.float32)
        before = sums.get(name, (0.0, 0.0))
        sums[name] = (before[0] + total, before[1] + count)
        finite &= jnp.isfinite(total)
    bad = jnp.where(finite, _NEVER, step).astype(jnp.int32)
    return Accumulated(sums, jnp.minimum(accumulated.first_bad_step, bad))


def restore_accumulated(sums: dict[str, list[float]]) -> Accumulated:
    """Sums as a checkpoint's record holds them, {} at the start of a run."""
    placed: Any = {name: (np.float32(total), np.float32(count)) for name, (total, count) in sums.items()}
    return parallel.place(Accumulated(placed, jnp.int32(_NEVER)), parallel.replicated())


def first_bad_step(accumulated: Accumulated) -> int | None:
    """The step at which a metric stopped being finite; waits for the device."""
    step = int(accumulated.first_bad_step)
    return None if step == _NEVER else step


def first_bad_leaf(tree: PyTree) -> str | None:
    """The path of the first leaf with a NaN or infinity; waits for the device."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    finite = jax.device_get(_finite_leaves(tree))
    return next((path for path, ok in zip(paths, jax.tree.leaves(finite), strict=True) if not ok), None)


@jax.jit
def _finite_leaves(tree: PyTree) -> PyTree:
    def finite(leaf):
        return jnp.isfinite(leaf).all() if jnp.issubdtype(leaf.dtype, jnp.number) else jnp.array(True)

    return jax.tree.map(finite, tree)


class Stepper:
    """Runs an experiment's train step, compiled once per function in force."""

    def __init__(self, experiment: Experiment, data: PyTree, seed: int):
        self.experiment, self.data, self.seed = experiment, data, seed
        self._placed_seed = parallel.place(np.uint32(seed), parallel.replicated())
        self.compile_seconds = 0.0
        self.temporary_bytes = 0
        self._programs: dict[int, Any] = {}
        self._loader = None
        if experiment.host_batch is not None:
            self._loader = _HostBatches(experiment.host_batch, experiment.batch_field, seed)

    def __call__(self, state: TrainState, accumulated: Accumulated, step: int) -> tuple[TrainState, Accumulated]:
        """One step; `state` is donated unless the step is a host step."""
        batch = self._loader.get(step) if self._loader else None
        since, function = self.experiment.step_function(step)
        if self.experiment.host_step:
            state, metrics = _step(self.experiment, function, state, self.data, batch, self.seed)
        else:
            if since not in self._programs:
                self._programs[since] = self._compile(function, state, batch)
            state, metrics = self._programs[since](state, self.data, batch, self._placed_seed)
        return state, accumulate(accumulated, metrics, step + 1)

    def close(self) -> None:
        """Let the thread that makes host batches go."""
        if self._loader is not None:
            self._loader.close()

    def _compile(self, function: TrainStep, state, batch):
        def train_step(state, data, batch, seed):
            return _step(self.experiment, function, state, data, batch, seed)

        started = time.perf_counter()
        jitted = jax.jit(train_step, donate_argnums=0, out_shardings=parallel.replicated())
        compiled = jitted.lower(state, self.data, batch, self._placed_seed).compile()
        self.compile_seconds += time.perf_counter() - started
        memory = compiled.memory_analysis()
        self.temporary_bytes = getattr(memory, "temp_size_in_bytes", 0)
        return compiled


def _step(experiment: Experiment, function: TrainStep, state, data, batch, seed):
    """The pure program, from the step counter to the metrics."""
    if experiment.batch is not None:
        batch = experiment.batch(data, state.step, rng.stream(seed, "batch", state.step))
    if not experiment.host_step:
        parallel.check_batch(batch, experiment.batch_field)
        batch = parallel.constrain_batch(batch)
    done = state.step
    state, metrics = function(state, data, batch, rng.stream(seed, "step", done))
    return strongly_typed(state.replace(step=done + 1)), metrics


class _HostBatches:
    """Makes and places the next batch in a thread while the device computes."""

    def __init__(self, make: Callable[[int, int], PyTree], field: str, seed: int):
        self._make, self._field, self._seed = make, field, seed
        self._pool = ThreadPoolExecutor(1, "host-batch")
        self._ahead: dict[int, Future] = {}

    def get(self, step: int) -> PyTree:
        future = self._ahead.pop(step, None) or self._pool.submit(self._load, step)
        self._ahead = {step + 1: self._pool.submit(self._load, step + 1)}
        return future.result()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _load(self, step: int) -> PyTree:
        batch = self._make(self._seed, step)
        parallel.check_batch(batch, self._field)
        return parallel.place(batch, parallel.batched())


def strongly_typed(tree: PyTree) -> PyTree:
    """The tree with plain dtypes. An array made from a Python number alone has a "weak" one, which a checkpoint does
    not keep: programs would be compiled anew after a restore."""

    def strong(leaf):
        return lax.convert_element_type(leaf, leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.number) else leaf

    return jax.tree.map(strong, tree)


def host_sums(accumulated: Accumulated) -> dict[str, list[float]]:
    """The sums as plain numbers, exact in JSON; waits for the device."""
    sums = jax.device_get(accumulated.sums)
    return {name: [float(total), float(count)] for name, (total, count) in sums.items()}
