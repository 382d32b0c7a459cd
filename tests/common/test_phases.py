"""Runs of several phases; the training of phases under interruptions is in test_loop.py."""

import json
import shutil

import jax
import numpy as np
import pytest

from common import phases
from common.errors import UserError
from common.experiment import Phase, TrainState
from tests.common.toys import experiment, running
from tests.common.toys.fixtures import compilation_cache  # noqa: F401


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phases") / "run"
    running.train(running.toy("phases", num_steps=6), folder)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


CONFIG = running.toy("phases", num_steps=6)


def test_each_phase_has_its_own_folder_and_steps(finished):
    assert sorted(path.name for path in finished.iterdir()) == [
        ".lock",
        "DONE",
        "config.json",
        "environment.json",
        "student",
        "teacher",
    ]
    assert running.state_on_disk(finished / "teacher")["['step']"] == 3
    assert running.state_on_disk(finished / "student")["['step']"] == 6


def test_student_is_told_by_the_teacher_on_disk(finished, monkeypatch):
    seen = {}
    original = experiment.student
    monkeypatch.setattr(
        experiment, "student", lambda config, teacher: seen.update(t=teacher) or original(config, teacher)
    )
    running.evaluate(CONFIG, finished)
    assert isinstance(seen["t"], TrainState)
    saved = {path: leaf for path, leaf in running.state_on_disk(finished / "teacher").items() if "params" in path}
    running.assert_same_arrays(running.arrays({"params": seen["t"].params}), saved)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(seen["t"].params))


def test_finished_phase_is_not_built_again(copy, monkeypatch):
    shutil.rmtree(copy / "student")
    (copy / "DONE").unlink()
    built = []
    original = experiment.build

    def build(config, finished):
        built.append(sorted(finished))
        return original(config, finished)

    monkeypatch.setattr(experiment, "build", build)
    running.train(CONFIG, copy)
    assert built == [["teacher"]]
    assert (copy / "DONE").exists()


def test_evaluation_gives_the_last_phase(finished):
    values = running.evaluate(CONFIG, finished)
    assert values["loss"] == pytest.approx(running.metrics(finished / "student")[-1]["loss"], rel=1e-6)
    other = running.toy("phases", num_steps=6, eval_batch_size=7)
    with pytest.raises(UserError, match=r"has another config \(eval_batch_size: 24 -> 7\)"):
        running.evaluate(other, finished)
    again = phases.evaluate(experiment.phases(other), other, finished, ("eval_batch_size",))
    assert again == pytest.approx(values)


def test_evaluation_gives_every_reported_phase(finished):
    stages = [phase._replace(reported=True) for phase in experiment.phases(CONFIG)]
    values = phases.evaluate(stages, CONFIG, finished)
    assert values.keys() == {"teacher_loss", "student_loss"}
    for name in ("teacher", "student"):
        assert values[f"{name}_loss"] == pytest.approx(running.metrics(finished / name)[-1]["loss"], rel=1e-6)
    first = phases.evaluate([stages[0], stages[1]._replace(reported=False)], CONFIG, finished)
    assert first == {"loss": values["teacher_loss"]}


def test_evaluation_before_the_last_phase_changes_nothing(copy):
    shutil.rmtree(copy / "student")
    (copy / "DONE").unlink()
    before = sorted(copy.rglob("*"))
    with pytest.raises(UserError, match=r"There is no checkpoint in .*student; train first"):
        running.evaluate(CONFIG, copy)
    assert sorted(copy.rglob("*")) == before
    running.train(CONFIG, copy)
    assert (copy / "student" / "DONE").exists()


def test_finished_phase_without_or_with_damaged_checkpoint(copy):
    (copy / "student" / "DONE").unlink()
    for file in (copy / "teacher" / "checkpoints" / "3" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match=r"teacher/checkpoints/3 cannot be read"):
        running.train(CONFIG, copy)
    shutil.rmtree(copy / "teacher" / "checkpoints")
    with pytest.raises(
        UserError, match=r"The phase in .*teacher has no checkpoint; remove its file DONE to train it again"
    ):
        running.train(CONFIG, copy)
    (copy / "teacher" / "DONE").unlink()
    running.train(CONFIG, copy)
    assert np.isfinite(running.state_on_disk(copy / "teacher")["['params']['head']['bias']"]).all()


def test_results_of_all_phases_are_gathered(copy):
    (copy / "DONE").unlink()
    for name, value in (("teacher", 1.5), ("student", 2.5)):
        (copy / name / "results.json").write_text(json.dumps({"loss": value}))
    running.train(CONFIG, copy)
    assert json.loads((copy / "results.json").read_text()) == {"teacher_loss": 1.5, "student_loss": 2.5}


def test_states_are_read_when_they_are_asked_for(finished, monkeypatch):
    read = []
    original = phases.read_state
    monkeypatch.setattr(phases, "read_state", lambda folder: read.append(folder.name) or original(folder))
    states = phases.Finished(finished, ["teacher", "student"])
    assert (sorted(states), len(states), read) == (["student", "teacher"], 2, [])
    assert states["teacher"] is states["teacher"]
    assert read == ["teacher"]
    with pytest.raises(KeyError):
        states["other"]


def test_overrides_belong_to_their_phase():
    phase = Phase("a", experiment.build, {"num_steps": 2, "width": 3})
    own = phases.phase_config(CONFIG, phase)
    assert (own.num_steps, own.width, CONFIG.num_steps, CONFIG.width) == (2, 3, 6, 8)
    assert own.is_locked


def test_a_method_gives_build_or_phases():
    with pytest.raises(ValueError, match="either build or phases"):
        phases.plan(CONFIG, None, None)
    assert phases.plan(CONFIG, experiment.build, None) == [Phase("", experiment.build, {})]
