"""The one training loop.

    start:  the run's own work directory, then `resume_from`, then `init_from`, then scratch
    repeat: refresh, step, log, evaluate, save

The order is fixed. Nothing is saved before the metrics up to that step are known to be finite, the last step is always
evaluated and saved, and a resumed run computes and writes what the run without a break would have.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from common import parallel, rng, workdir, writers
from common.checkpoint import Checkpoints
from common.errors import UserError
from common.experiment import Experiment, TrainState
from common.interrupt import Interrupted, StopRequest
from common.metrics import means
from common.step import Stepper, first_bad_leaf, first_bad_step, host_sums, restore_accumulated, strongly_typed

PyTree = Any


class NonFiniteError(RuntimeError):
    """A metric became NaN or infinite; the message says where, and which checkpoint stands."""


class Start(NamedTuple):
    step: int
    state: TrainState
    record: dict[str, Any]  # what the checkpoint says beside the state


class Outcome(NamedTuple):
    state: TrainState
    finished: bool  # False: stopped by a signal, to be resumed
    results: dict[str, float]


def fit(experiment: Experiment, config: ConfigDict, folder: Path) -> Outcome:
    """Train `experiment` in the work directory `folder`, from wherever it stands there."""
    data = parallel.place_data(experiment.data)
    checkpoints = Checkpoints(folder / "checkpoints", config.keep_best)
    try:
        start = find_start(experiment, data, config, checkpoints)
        with (
            StopRequest(
                f"The last checkpoint in {folder} stands; run the same command to resume.", jax.process_count() == 1
            ) as stop,
            writers.Console(config.num_steps, folder.name, start.step) as console,
        ):
            run = _Run(experiment, data, config, folder, checkpoints, stop, console)
            try:
                return run.go(start)
            finally:
                run.close()
    finally:
        checkpoints.close()


def abstract_state(experiment: Experiment, data: PyTree, seed: int) -> TrainState:
    """Shapes, types and (replicated) placement of the state; nothing is computed."""
    shapes = jax.eval_shape(experiment.init, data, rng.stream(seed, "init"))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=parallel.replicated()), shapes
    )


def find_start(experiment: Experiment, data: PyTree, config: ConfigDict, checkpoints: Checkpoints) -> Start:
    """Own work directory, then `resume_from` (all of the state), then `init_from` (parameters only), then scratch.

    `init_from` is another run's work directory or, if the experiment reads such, a file of weights from elsewhere.
    """
    like = abstract_state(experiment, data, config.seed)
    own = checkpoints.restore_latest(like)
    if own is not None:
        return Start(*own)
    if config.resume_from:
        step, state, record = _read_other(config.resume_from, "resume_from", lambda other: other.restore_latest(like))
        return Start(step, state, {**record, "metrics_bytes": 0, "evaluation_due": False})
    init = jax.jit(lambda data, key: strongly_typed(experiment.init(data, key)), out_shardings=parallel.replicated())
    state = init(data, rng.stream(config.seed, "init"))
    if config.init_from:
        if experiment.read_weights is not None and Path(config.init_from).is_file():
            params = parallel.place(experiment.read_weights(Path(config.init_from), like.params), parallel.replicated())
        else:
            params = _read_other(config.init_from, "init_from", lambda other: other.restore_latest_params(like))
        state = state.replace(params=params)
    return Start(0, state, {"metrics_bytes": 0, "sums": {}, "evaluation_due": False})


def _read_other(path: str, field: str, read: Callable[[Checkpoints], Any]) -> Any:
    """What `read` finds among another run's checkpoints, which stay as they are."""
    folder = Path(path) / "checkpoints"
    if not folder.is_dir():
        raise UserError(
            f"config.{field} is {path!r}, but there is no folder {folder}; give the work directory of a run."
        )
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        found = read(checkpoints)
    finally:
        checkpoints.close()
    if found is None:
        raise UserError(f"config.{field} is {path!r}, but {folder} holds no checkpoint.")
    return found


class _Run:
    """One session of a run, between two starts of the process."""

    def __init__(self, experiment, data, config, folder, checkpoints, stop, console):
        self.experiment: Experiment = experiment
        self.data, self.config, self.folder = data, config, folder
        self.checkpoints: Checkpoints = checkpoints
        self.stop: StopRequest = stop
        self.console: writers.Console = console
        self.stepper = Stepper(experiment, data, config.seed)
        self.writers: list[writers.Writer] = []
        self.saved_step = max(checkpoints.steps(), default=-1)

    def go(self, start: Start) -> Outcome:
        self._open_writers(start)
        step, state = start.step, start.state
        accumulated = restore_accumulated(start.record["sums"])
        if step:
            self.console.print(f"{self.folder.name}: resumed at step {step} of {self.config.num_steps}.")
        try:
            if start.record["evaluation_due"]:
                self._evaluate_and_save(step, state, accumulated)
            while step < self.config.num_steps and not self._is_done(state):
                state = self._refresh(state, step)
                state, accumulated = self._one_step(state, accumulated, step)
                step += 1
                ended = step == self.config.num_steps or self._is_done(state)
                stopping = self._stop_agreed(step)
                accumulated = self._after_step(step, state, accumulated, ended, stopping)
                if self.stop.agreed and self.saved_step == step:
                    return self._stopped(state)
            if self.saved_step != step:  # there was nothing to train: no steps, or `resume_from` a finished run
                self._evaluate_and_save(step, state, accumulated)
            return self._finish(step, state)
        except Interrupted:
            return self._stopped(state)

    def close(self) -> None:
        self.stepper.close()
        for writer in self.writers:
            writer.close()

    # --- one step -------------------------------------------------------------------------------------------------

    def _refresh(self, state: TrainState, step: int) -> TrainState:
        every = self.experiment.refresh_every
        due = step % every == 0 if every else step == 0
        if self.experiment.refresh is None or not due:
            return state
        with self.stop.interruptible():
            state = self.experiment.refresh(state, self.data, step, rng.stream(self.config.seed, "refresh", step))
        # Host code may leave arrays anywhere; the compiled step wants them where its own results are.
        return jax.device_put(state, parallel.replicated())

    def _one_step(self, state, accumulated, step):
        compiled_before = self.stepper.compile_seconds
        if self.experiment.host_step:
            with self.stop.interruptible():
                state, accumulated = self.stepper(state, accumulated, step)
        else:
            state, accumulated = self.stepper(state, accumulated, step)
        seconds = self.stepper.compile_seconds - compiled_before
        if seconds:
            self.console.print(
                f"{self.folder.name}: train step compiled in {seconds:.1f} s, "
                f"{self.stepper.temporary_bytes / 2**20:.0f} MiB of temporaries per device."
            )
            self.started, self.steps_before = time.monotonic(), step
        self.console.update(step + 1)
        return state, accumulated

    def _after_step(self, step, state, accumulated, ended, stopping):
        config = self.config

        def due(every: int) -> bool:
            return ended or (every > 0 and step % every == 0)

        if not (
            due(config.log_every_steps) or due(config.eval_every_steps) or due(config.save_every_steps) or stopping
        ):
            return accumulated
        sums = self._checked_sums(step, state, accumulated)
        if due(config.log_every_steps):
            self._write(step, "train", means(sums))
            accumulated = restore_accumulated({})
        if due(config.eval_every_steps):
            self._evaluate_and_save(step, state, accumulated, save=due(config.save_every_steps) or stopping)
        elif due(config.save_every_steps) or stopping:
            self._save(step, state, accumulated)
        return accumulated

    def _checked_sums(self, step, state, accumulated) -> dict[str, list[float]]:
        bad = first_bad_step(accumulated)
        sums = host_sums(accumulated)
        if bad is not None:
            names = [name for name, (total, _) in sums.items() if not math.isfinite(total)]
            self._fail(bad, names, state)
        return sums

    def _fail(self, step: int, names: list[str], state: TrainState) -> None:
        self.checkpoints.wait()
        steps = self.checkpoints.steps()
        parameter = first_bad_leaf(state.params)
        if parameter is not None:
            names = [*names, f"the parameter {parameter}"]
        raise NonFiniteError(
            f"{' and '.join(names)} became non-finite at step {step}"
            + (f"; the last good checkpoint is {self.checkpoints.folder / str(steps[-1])}" if steps else "")
            + "; lower config.optimizer.learning_rate or look at the data, then run again."
        )

    # --- evaluate, save, end --------------------------------------------------------------------------------------

    def _evaluate_and_save(self, step, state, accumulated, save: bool = True) -> None:
        config = self.config
        try:
            with self.stop.interruptible():
                values = self.experiment.evaluate(state, self.data)
        except Interrupted:
            self._save(step, state, accumulated, evaluation_due=True)
            raise
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            self._fail(step, bad, state)
        self._write(step, "evaluate", values)
        best = None
        if config.keep_best:
            if config.best_metric not in values:
                raise UserError(
                    f"config.best_metric is {config.best_metric!r}, but the evaluation reports "
                    f"{', '.join(sorted(values))}."
                )
            best = values[config.best_metric] * (1 if config.best_is_largest else -1)
        if save or best is not None:
            self._save(step, state, accumulated, best=best)

    def _save(self, step, state, accumulated, best=None, evaluation_due=False) -> None:
        self.stop.acknowledge_if_agreed()
        size = 0
        for writer in self.writers:
            writer.flush()
            if isinstance(writer, writers.JsonlWriter):
                size = writer.size()
        if first_bad_leaf(state.params) is not None:  # a finite loss can have a gradient that is not
            self._fail(step, [], state)
        record = {"sums": host_sums(accumulated), "metrics_bytes": size, "evaluation_due": evaluation_due}
        self.checkpoints.save(step, state, record, best)
        self.saved_step = step

    def _stop_agreed(self, step: int) -> bool:
        """Processes of a pod must stop at the same step, so there they talk about it whenever they log."""
        if jax.process_count() > 1 and step % (self.config.log_every_steps or 1) == 0:
            self.stop.agreed = parallel.any_process(self.stop.requested)
        return self.stop.agreed

    def _stopped(self, state: TrainState) -> Outcome:
        self.stop.acknowledge()
        self.checkpoints.wait()
        where = f"saved at step {self.saved_step}" if self.saved_step > 0 else "before the first checkpoint"
        self.console.print(f"{self.folder.name}: stopped, {where}; run the same command to resume.")
        return Outcome(state, False, {})

    def _finish(self, step: int, state: TrainState) -> Outcome:
        self.checkpoints.wait()
        results = finish(self.experiment, state, self.data, self.folder, self.stop)
        if parallel.is_main():
            workdir.write_results(self.folder, "results", results)
            workdir.mark_done(self.folder)
        return Outcome(state, True, results)

    def _is_done(self, state: TrainState) -> bool:
        return self.experiment.done is not None and bool(self.experiment.done(state))

    # --- metrics --------------------------------------------------------------------------------------------------

    def _open_writers(self, start: Start) -> None:
        self.started, self.steps_before = time.monotonic(), start.step
        if not parallel.is_main():
            return
        writers.truncate(self.folder / "metrics.jsonl", start.record["metrics_bytes"])
        self.writers = writers.make_writers(
            self.folder,
            tensorboard=self.config.tensorboard,
            wandb_project=self.config.wandb_project,
            config=self.config.to_dict(),
            start_step=start.step,
        )

    def _write(self, step: int, kind: str, values: dict[str, float]) -> None:
        elapsed = time.monotonic() - self.started
        wall = {"seconds": elapsed, "steps_per_s": (step - self.steps_before) / max(elapsed, 1e-9)}
        for writer in self.writers:
            writer.write(step, kind, values, wall)
        if parallel.is_main():
            self.console.log(step, kind, values)


def finish(
    experiment: Experiment, state: TrainState, data: PyTree, folder: Path, stop: StopRequest
) -> dict[str, float]:
    """The experiment's own ending: figures, exports and final numbers."""
    if experiment.finish is None:
        return {}
    with stop.interruptible():
        return experiment.finish(state, data, folder)
