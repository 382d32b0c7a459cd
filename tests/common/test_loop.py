"""The training loop: resumed runs equal straight ones, whatever the method does between its steps."""

import dataclasses
import json
import shutil
import signal

import jax
import numpy as np
import pytest

from common import loop, writers
from common.checkpoint import Checkpoints
from common.errors import UserError
from tests.common.toys import experiment, running
from tests.common.toys.config import TOYS
from tests.common.toys.fixtures import compilation_cache  # noqa: F401

# A loss at which the toy "done" ends, after 5 < step < 20.
FIELDS = {"done": {"target": 0.55}}
STOPS = {"regression": 4, "warm_up": 7, "refresh": 6, "host_step": 11, "two_optimizers": 13, "done": 5, "phases": 3}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """toy -> folder of a run without a break, made when first asked for."""
    folders = {}

    def get(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("straight") / name
            running.train(running.toy(name, **FIELDS.get(name, {})), folders[name])
        return folders[name]

    return get


@pytest.mark.parametrize("name", TOYS)
def test_stopped_and_resumed_equals_straight(name, straight, tmp_path, monkeypatch, capsys):
    config, stop = running.toy(name, **FIELDS.get(name, {})), STOPS.get(name, 8)
    running.stop_after(monkeypatch, stop)
    first = running.train(config, tmp_path)
    assert not any(outcome.finished for outcome in first.values())
    # A step on the host is abandoned: what stands is the checkpoint before it.
    saved = 10 if name == "host_step" else stop
    assert f"stopped, saved at step {saved}; run the same command to resume" in capsys.readouterr().out
    outcomes = running.train(config, tmp_path)
    assert all(outcome.finished for outcome in outcomes.values())
    assert f"resumed at step {saved} of" in capsys.readouterr().out
    running.assert_same_run(straight(name), tmp_path)


def test_student_stopped_and_resumed_equals_straight(straight, tmp_path, monkeypatch):
    config = running.toy("phases")
    running.stop_after(monkeypatch, 12)  # the teacher has 10 steps
    assert not running.train(config, tmp_path)["student"].finished
    teacher = (tmp_path / "teacher" / "metrics.jsonl").stat()
    assert running.train(config, tmp_path)["student"].finished
    assert (tmp_path / "teacher" / "metrics.jsonl").stat().st_mtime_ns == teacher.st_mtime_ns
    running.assert_same_run(straight("phases"), tmp_path)


@pytest.mark.parametrize("name", ["host_batch", "refresh"])
def test_rerun_is_equal_and_another_seed_is_not(name, straight, tmp_path):
    running.train(running.toy(name), tmp_path / "again")
    running.assert_same_run(straight(name), tmp_path / "again")
    running.train(running.toy(name, seed=1), tmp_path / "other")
    assert running.metrics(tmp_path / "other") != running.metrics(straight(name))


def test_toy_done_ends_early_and_is_evaluated_and_saved(straight):
    lines = running.metrics(straight("done"))
    last = lines[-1]["step"]
    assert 5 < last < 20
    assert [line["kind"] for line in lines if line["step"] == last] == ["train", "evaluate"]
    assert running.state_on_disk(straight("done"))["['step']"] == last


def test_lines_are_written_when_due_and_at_the_end(straight):
    lines = running.metrics(straight("regression"))
    assert [line["step"] for line in lines if line["kind"] == "train"] == [3, 6, 9, 12, 15, 18, 20]
    assert [line["step"] for line in lines if line["kind"] == "evaluate"] == [5, 10, 15, 20]
    assert lines[-1]["loss"] < lines[0]["loss"] / 2


def test_metrics_of_an_interval_are_means_over_its_steps(straight, tmp_path):
    running.train(running.toy(log_every_steps=1), tmp_path)
    single = [line["loss"] for line in running.metrics(tmp_path) if line["kind"] == "train"]
    together = [line["loss"] for line in running.metrics(straight("regression")) if line["kind"] == "train"]
    np.testing.assert_allclose(together[:6], np.reshape(single[:18], (6, 3)).mean(1), rtol=1e-6)
    assert together[6] == pytest.approx(np.mean(single[18:]), rel=1e-6)


def test_warm_up_reports_what_each_step_function_gives(straight):
    lines = [line for line in running.metrics(straight("warm_up")) if line["kind"] == "train"]
    # The change comes after step 7, so the line of step 9 tells of both.
    assert {line["step"]: line["warming"] for line in lines if "warming" in line} == {3: 1.0, 6: 1.0, 9: 1.0}
    assert {line["step"] for line in lines if "warm" in line} == {9, 12, 15, 18, 20}


# --- stopped elsewhere than in a step -------------------------------------------------------------------------------


def test_interrupted_evaluation_is_made_up_for(straight, tmp_path, monkeypatch):
    config = running.toy()
    original = experiment.make_evaluate

    def interrupting(config, *args):
        evaluate = original(config, *args)

        def stop(state, data):
            if state.step == 10 and not (tmp_path / "checkpoints" / "10").exists():
                signal.raise_signal(signal.SIGTERM)
            return evaluate(state, data)

        return stop

    monkeypatch.setattr(experiment, "make_evaluate", interrupting)
    assert not running.train(config, tmp_path)[""].finished
    assert [line["kind"] for line in running.metrics(tmp_path) if line["step"] >= 9] == ["train"]
    assert running.train(config, tmp_path)[""].finished
    running.assert_same_run(straight("regression"), tmp_path)


def test_interrupted_refresh_leaves_the_last_checkpoint(straight, tmp_path, monkeypatch):
    original = experiment.refresh

    def build(config):
        built = original(config)

        def refresh(state, data, step, key):
            if step == 12 and not (tmp_path / "stopped").exists():
                (tmp_path / "stopped").touch()
                signal.raise_signal(signal.SIGTERM)
            return built.refresh(state, data, step, key)

        return loop.Experiment(**{**built.__dict__, "refresh": refresh})

    monkeypatch.setitem(experiment.BUILDERS, "refresh", build)
    assert not running.train(running.toy("refresh"), tmp_path)[""].finished
    assert running.state_on_disk(tmp_path)["['step']"] == 12
    assert running.train(running.toy("refresh"), tmp_path)[""].finished
    running.assert_same_run(straight("refresh"), tmp_path)


def test_interrupted_finish_is_made_again(straight, tmp_path, monkeypatch):
    calls = []

    def finish(state, data, folder):
        calls.append(int(state.step))
        if len(calls) == 1:
            signal.raise_signal(signal.SIGTERM)
        return {"steps": float(state.step)}

    monkeypatch.setitem(experiment.BUILDERS, "regression", lambda config: experiment.regression(config, finish=finish))
    assert not running.train(running.toy(), tmp_path)[""].finished
    assert not (tmp_path / "DONE").exists()
    assert running.train(running.toy(), tmp_path)[""].results == {"steps": 20.0}
    assert calls == [20, 20]
    assert running.metrics(tmp_path) == running.metrics(straight("regression"))
    assert json.loads((tmp_path / "results.json").read_text()) == {"steps": 20.0}


# --- where a run starts ---------------------------------------------------------------------------------------------


def test_resume_from_continues_everything(straight, tmp_path):
    config = running.toy(num_steps=26, resume_from=str(straight("regression")))
    running.train(config, tmp_path / "on")
    running.train(running.toy(num_steps=26), tmp_path / "whole")
    assert running.metrics(tmp_path / "on")[0]["step"] == 21
    running.assert_same_arrays(running.state_on_disk(tmp_path / "on"), running.state_on_disk(tmp_path / "whole"))


def test_resume_from_a_run_with_nothing_left_to_do_saves_it_here(straight, tmp_path):
    running.train(running.toy(resume_from=str(straight("regression"))), tmp_path)
    running.assert_same_arrays(running.state_on_disk(tmp_path), running.state_on_disk(straight("regression")))
    assert running.evaluate(running.toy(resume_from=str(straight("regression"))), tmp_path)["loss"] > 0


def test_init_from_takes_parameters_alone(straight, tmp_path):
    # Another optimiser: its slots do not fit, and are not looked at.
    config = running.toy(momentum=0.0, learning_rate=1e-12, num_steps=1, init_from=str(straight("regression")))
    running.train(config, tmp_path)
    here, there = running.state_on_disk(tmp_path), running.state_on_disk(straight("regression"))
    assert here["['step']"] == 1
    assert not any("trace" in path for path in here)
    parameters = [path for path in here if path.startswith("['params']")]
    assert len(parameters) == 4
    for path in parameters:
        np.testing.assert_allclose(here[path], there[path], atol=1e-9)


def test_init_from_a_file_of_weights_from_elsewhere(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"7")
    config = running.toy(num_steps=0, init_from=str(file))

    def read_weights(path, like):
        return jax.tree.map(lambda leaf: np.full(leaf.shape, int(path.read_text()), leaf.dtype), like)

    built = dataclasses.replace(experiment.build(config, {}), read_weights=read_weights)
    (tmp_path / "run").mkdir()
    assert loop.fit(built, config, tmp_path / "run").finished
    state = running.state_on_disk(tmp_path / "run")
    assert all((array == 7).all() for path, array in state.items() if path.startswith("['params']"))
    # Who reads no such files takes work directories alone.
    with pytest.raises(UserError, match="give the work directory of a run"):
        running.train(config, tmp_path / "other")


def test_own_work_directory_comes_before_all_others(straight, tmp_path, monkeypatch):
    other = str(straight("regression"))
    for fields in ({"resume_from": other, "num_steps": 26}, {"init_from": other}):
        folder = tmp_path / next(iter(fields))
        config = running.toy(seed=3, **fields)
        running.stop_after(monkeypatch, 22 if "resume_from" in fields else 2)
        assert not running.train(config, folder)[""].finished
        shutil.copytree(folder, tmp_path / "copy" / folder.name)
        before = running.state_on_disk(folder)["['step']"]
        experiment_of = experiment.build(config, {})
        checkpoints = Checkpoints(folder / "checkpoints")
        begun = loop.find_start(experiment_of, experiment_of.data, config, checkpoints)
        checkpoints.close()
        assert begun.step == before == int(begun.state.step)


def test_resume_from_comes_before_init_from(straight, tmp_path):
    other = str(straight("regression"))
    config = running.toy(resume_from=other, init_from=other)
    built = experiment.build(config, {})
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    begun = loop.find_start(built, built.data, config, checkpoints)
    checkpoints.close()
    assert begun.step == 20
    assert begun.record["metrics_bytes"] == 0


@pytest.mark.parametrize("field", ["resume_from", "init_from"])
def test_bad_place_to_start_from(field, straight, tmp_path):
    with pytest.raises(UserError, match=rf"config.{field} is '/nowhere', but there is no folder /nowhere/checkpoints"):
        running.train(running.toy(**{field: "/nowhere"}), tmp_path / "a")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"config.{field} .* holds no checkpoint"):
        running.train(running.toy(**{field: str(tmp_path / "empty")}), tmp_path / "b")
    with pytest.raises(UserError, match=r"\['head'\]\['kernel'\] is float32\[8, 2\] there and float32\[5, 2\]"):
        running.train(running.toy(width=5, **{field: str(straight("regression"))}), tmp_path / "c")
    assert not list((tmp_path / "empty" / "checkpoints").iterdir())


# --- numbers that are none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plant", "step", "message"),
    [
        ("loss", 9, r"loss and the parameter \['head'\]\['bias'\] became non-finite at step 10; .*checkpoints/8;"),
        ("gradient", 11, r"the parameter \['head'\]\['bias'\] became non-finite at step 12; .*checkpoints/10;"),
        ("evaluation", 10, r"^loss became non-finite at step 10; .*checkpoints/8;"),
        ("loss", 1, r"became non-finite at step 2; lower config.optimizer.learning_rate or look at the data"),
    ],
)
def test_planted_nan_stops_the_run(plant, step, message, tmp_path):
    with pytest.raises(loop.NonFiniteError, match=message):
        running.train(running.toy(plant=plant, plant_step=step), tmp_path)
    assert not (tmp_path / "DONE").exists()
    last = step // 4 * 4 if plant == "loss" else {11: 10, 10: 8}[step]
    if last:
        assert all(np.isfinite(array).all() for array in running.state_on_disk(tmp_path).values())
        assert running.state_on_disk(tmp_path)["['step']"] == last


def test_best_metric_that_is_not_reported(tmp_path):
    with pytest.raises(UserError, match=r"config.best_metric is 'accuracy', but the evaluation reports loss\."):
        running.train(running.toy(best_metric="accuracy"), tmp_path)


def test_metrics_file_shorter_than_the_checkpoint_says(straight, tmp_path, monkeypatch):
    running.stop_after(monkeypatch, 9)
    running.train(running.toy(), tmp_path)
    file = tmp_path / "metrics.jsonl"
    text = file.read_bytes()
    file.write_bytes(text[:50])
    with pytest.raises(UserError, match=r"metrics.jsonl has 50 bytes, but the checkpoint .* restore the file"):
        running.train(running.toy(), tmp_path)
    file.write_bytes(text + b'{"step": 9, "half a li')
    running.train(running.toy(), tmp_path)
    running.assert_same_run(straight("regression"), tmp_path)


def test_lines_after_the_restored_step_are_cut(straight, tmp_path):
    shutil.copytree(straight("regression"), tmp_path / "run")
    (tmp_path / "run" / "DONE").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "20")
    running.train(running.toy(), tmp_path / "run")
    running.assert_same_run(straight("regression"), tmp_path / "run")


def test_no_steps_at_all_still_leaves_an_evaluated_checkpoint(tmp_path):
    running.train(running.toy(num_steps=0), tmp_path)
    assert [line["kind"] for line in writers.read(tmp_path / "metrics.jsonl")] == ["evaluate"]
    assert running.state_on_disk(tmp_path)["['step']"] == 0


# --- compilations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "steps"), [("regression", 1), ("refresh", 1), ("warm_up", 2), ("batch_norm", 1)])
def test_each_program_is_compiled_once(name, steps, tmp_path, compiled, monkeypatch):
    running.stop_after(monkeypatch, 14)
    running.train(running.toy(name), tmp_path)
    assert compiled().count("jit(train_step)") == steps
    assert compiled().count("jit(evaluate)") == 1
    running.train(running.toy(name), tmp_path)  # a new session compiles each once, what is in force
    assert compiled().count("jit(train_step)") == steps + 1
    assert compiled().count("jit(evaluate)") == 2


def test_large_data_are_no_constants(tmp_path, monkeypatch):
    original = experiment.make_data
    monkeypatch.setattr(experiment, "make_data", lambda: original() | {"pad": np.zeros((1 << 20, 2), np.float32)})
    assert jax.config.jax_captured_constants_warn_bytes == 1 << 20  # pyright: ignore[reportAttributeAccessIssue]
    running.train(running.toy(num_steps=2), tmp_path)  # a warning would be an error
