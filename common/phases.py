"""Runs of one or several phases; a finished phase is never run again."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from ml_collections import ConfigDict

from common import loop, parallel, workdir
from common.checkpoint import Checkpoints, read_run
from common.config import check
from common.errors import UserError
from common.experiment import Experiment, Phase, TrainState
from common.interrupt import StopRequest

Build = Callable[[ConfigDict, Mapping[str, TrainState]], Experiment]


def plan(
    config: ConfigDict, build: Build | None, phases: Callable[[ConfigDict], Sequence[Phase]] | None
) -> list[Phase]:
    """The phases of a run; a method without phases has one, without a name, whose folder is the run's own."""
    if phases is not None:
        return list(phases(config))
    if build is None:
        raise ValueError("A method gives either build or phases.")
    return [Phase("", build, {})]


def phase_config(config: ConfigDict, phase: Phase) -> ConfigDict:
    """The run's config with the phase's own fields. Raises UserError for a seed that keys cannot be made of."""
    own = config.copy_and_resolve_references()
    own.update_from_flattened_dict(dict(phase.overrides))
    check(own, "seed", 0 <= own.seed < 2**32, "must lie between 0 and 4294967295")
    return own.lock()


def train(phases: Sequence[Phase], config: ConfigDict, folder: Path) -> dict[str, loop.Outcome]:
    """Run the phases one after the other, each in its sub-folder; stop after one that was interrupted.

    Each is built only when the ones before it are finished, with their states as read back from disk. The folder
    belongs to this process (or these processes, of which the main one holds it) meanwhile.
    """
    new = parallel.is_main() and workdir.open_for_training(folder, config)
    try:
        with workdir.hold(folder) if parallel.is_main() else nullcontext():
            parallel.barrier("open workdir")
            return _train_held(phases, config, folder)
    except UserError:
        if new:
            workdir.give_up(folder)
        raise


def _train_held(phases: Sequence[Phase], config: ConfigDict, folder: Path) -> dict[str, loop.Outcome]:
    outcomes: dict[str, loop.Outcome] = {}
    finished = Finished(folder)
    for phase in phases:
        own, place = phase_config(config, phase), folder / phase.name
        if not workdir.is_done(place):
            if phase.name and parallel.is_main():
                workdir.open_for_training(place, own)
            parallel.barrier(f"open phase {phase.name}")
            outcomes[phase.name] = loop.fit(phase.build(own, finished), own, place)
            if not outcomes[phase.name].finished:
                return outcomes
        finished.names.append(phase.name)
    if phases[-1].name and parallel.is_main():
        gathered = results(phases, folder)
        if gathered:
            workdir.write_results(folder, "results", gathered)
        workdir.mark_done(folder)
    return outcomes


def results(phases: Sequence[Phase], folder: Path) -> dict[str, float]:
    """The results of all phases that have ended, each name with its phase's in front."""
    found = {}
    for phase in phases:
        file, before = folder / phase.name / "results.json", f"{phase.name}_" if phase.name else ""
        own = json.loads(file.read_text()) if file.exists() else {}
        found |= {before + name: value for name, value in own.items()}
    return found


class Finished(Mapping[str, TrainState]):
    """States of the phases that have ended, read from disk when they are first asked for."""

    def __init__(self, folder: Path, names: Sequence[str] = ()):
        self.folder, self.names = folder, list(names)  # the run's folder; files of a phase lie in `folder / name`
        self._states: dict[str, TrainState] = {}

    def __getitem__(self, name: str) -> TrainState:
        if name not in self.names:
            raise KeyError(name)
        if name not in self._states:
            self._states[name] = read_state(self.folder / name)
        return self._states[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def evaluate(
    phases: Sequence[Phase], config: ConfigDict, folder: Path, evaluation_fields: Collection[str] = ()
) -> dict[str, float]:
    """Evaluate the latest checkpoint of every reported phase, or of the last one where none is.

    Returns the numbers of `evaluate` and `finish` together; of several phases, each name with its phase's in front.
    """
    workdir.check_config(folder, config, evaluation_fields)
    reported = [place for place, phase in enumerate(phases) if phase.reported] or [len(phases) - 1]
    found = {}
    for place in reversed(reported):  # the last is the first that may still be missing
        before = f"{phases[place].name}_" if len(reported) > 1 else ""
        found |= {before + name: value for name, value in _evaluate_one(phases, place, config, folder).items()}
    return found


def _evaluate_one(phases: Sequence[Phase], place: int, config: ConfigDict, run: Path) -> dict[str, float]:
    finished = Finished(run, [phase.name for phase in phases[:place]])
    own, folder = phase_config(config, phases[place]), run / phases[place].name
    experiment = phases[place].build(own, finished)
    data = parallel.place_data(experiment.data)
    checkpoints = Checkpoints(folder / "checkpoints", own.keep_best, read_only=True)
    try:
        found = checkpoints.restore_latest(loop.abstract_state(experiment, data, own.seed))
    finally:
        checkpoints.close()
    if found is None:
        raise UserError(f"There is no checkpoint in {folder}; train first with the same command and --mode=train.")
    _, state, _ = found
    with StopRequest("The evaluation was not finished; run the same command again.") as stop:
        values = experiment.evaluate(state, data)
        return values | loop.finish(experiment, state, data, folder, stop)


def read_state(folder: Path) -> TrainState:
    """The latest state in a phase's folder, as nested dicts of replicated arrays."""
    absent = f"The phase in {folder} has no checkpoint; remove its file DONE to train it again."
    _, tree = read_run(folder, absent=absent)
    return TrainState(**{name: tree.get(name, {}) for name in ("step", "params", "opt_state", "model_state")})
