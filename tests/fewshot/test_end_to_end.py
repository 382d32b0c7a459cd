"""The command line as a user types it: what a run prints and leaves behind, and that a kill changes nothing."""

import json
import re
import shutil
import signal
import time
from typing import Any

import numpy as np
import pytest

from tests.common.toys import running
from tests.fewshot import cli

RESULTS = {
    *(f"test_{which}_{what}" for which in ("ensemble", "best_single") for what in ("accuracy", "ci95_per_query")),
    *("test_ensemble_ci95_per_episode", "test_best_single_ci95_per_episode", "ensemble_size", "best_step"),
}
TRAIN = {"step", "kind", "loss", "accuracy", "adaptation_loss"}
CXGRAD = {*(f"gamma_{layer}" for layer in range(4)), "gamma_spread_over_tasks", "context_norm"}
TAPL = {"pseudo_label_loss", "pseudo_accuracy_first", "pseudo_accuracy_last", "pseudo_confidence"}
PSEUDO = {f"test_best_single_{what}_{when}" for what in ("pseudo_accuracy", "confidence") for when in ("first", "last")}
EVALUATE = {"step", "kind", "loss", "accuracy", "accuracy_ci95"}


# --- what a run leaves and prints -----------------------------------------------------------------------------------


def test_metrics_have_the_promised_names_at_the_promised_steps(finished):
    lines = running.metrics(finished.folder)
    by_kind = {kind: [line for line in lines if line["kind"] == kind] for kind in ("train", "evaluate")}
    assert [line["step"] for line in by_kind["train"]] == list(range(1, 41))
    assert [line["step"] for line in by_kind["evaluate"]] == [8, 16, 24, 32, 40]
    assert all(line.keys() == TRAIN | CXGRAD for line in by_kind["train"])
    assert all(line.keys() == EVALUATE for line in by_kind["evaluate"])
    assert all(np.isfinite([value for name, value in line.items() if name != "kind"]).all() for line in lines)


def test_results_and_checkpoints(finished):
    assert (finished.folder / "DONE").exists()
    results = json.loads((finished.folder / "results.json").read_text())
    assert results.keys() == RESULTS
    assert results["ensemble_size"] == 3
    evaluated = {
        line["step"]: line["accuracy"] for line in running.metrics(finished.folder) if line["kind"] == "evaluate"
    }
    best = sorted(evaluated, key=lambda step: (evaluated[step], step), reverse=True)
    assert results["best_step"] == best[0]
    steps = {int(folder.name) for folder in (finished.folder / "checkpoints").iterdir()}
    assert steps == {*best[:3], 39, 40}
    state = running.state_on_disk(finished.folder)
    assert state["['step']"] == 40
    assert any("generator" in path for path in state)


def test_figures(finished):
    names = {file.name for file in (finished.folder / "figures").iterdir()}
    assert names >= {"training.png", "gradient_norms.png", "scale_factors.png", "context_norm.png"}
    norms = json.loads((finished.folder / "figures" / "gradient_norms.json").read_text())
    assert norms.keys() == {*(f"conv{layer}/kernel" for layer in range(4)), "head/kernel", "head/bias"}
    assert all(len(steps) == 2 and min(steps) > 0 for steps in norms.values())


def test_plain_output_has_progress_and_the_table(finished):
    assert re.search(
        r"^run 20/40 train  \[[\d.e+]+ steps/s, ETA \d+:\d\d:\d\d\]  accuracy 0", finished.out, re.MULTILINE
    )
    assert re.search(r"^run 40/40 evaluate .* accuracy_ci95 ", finished.out, re.MULTILINE)
    assert "\x1b" not in finished.out
    for name in RESULTS:
        assert re.search(rf"^\| {name} +\| [\d.]+ +\|$", finished.out, re.MULTILINE), name


def test_each_program_is_compiled_once(finished):
    assert finished.compiled["train_step"] == 1
    assert finished.compiled["evaluate"] == 1  # for validation and test


def test_evaluation_again_gives_the_same_numbers(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    out, _ = cli.run("cxgrad", folder, "--mode=eval", **finished.fields)
    values = json.loads((folder / "eval.json").read_text())
    assert {name: values[name] for name in RESULTS} == json.loads((folder / "results.json").read_text())
    last = running.metrics(folder)[-1]
    assert {name: values[name] for name in EVALUATE - {"step", "kind"}}.items() <= last.items()
    assert "eval.json" in out
    assert running.metrics(folder) == running.metrics(finished.folder)


def test_finished_run_is_left_as_it_is(finished):
    def files():
        return {file: file.stat().st_mtime_ns for file in finished.folder.rglob("*")}

    before = files()
    out, _ = cli.run("cxgrad", finished.folder, **finished.fields)
    assert "is finished already; use --mode=eval" in out
    assert "test_ensemble_accuracy" in out
    assert files() == before


def test_resume_from_a_run_with_nothing_left_to_train(finished, tmp_path):
    cli.run("cxgrad", tmp_path / "run", resume_from=finished.folder, **finished.fields)
    running.assert_same_arrays(running.state_on_disk(finished.folder), running.state_on_disk(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "results.json").read_text()).keys() == RESULTS


SMOKE: dict[str, tuple[str, dict[str, Any]]] = {
    "maml_pp": ("maml_pp", {}),
    "tapl": ("tapl", {}),
    "maml": ("maml", {}),
    "anil": ("anil", {}),
    "boil": ("boil", {}),
    "tapl on cxgrad": ("tapl", {"method": "cxgrad", "propagation.sigma": "per_image"}),
    "propagation": ("tapl", {"transduction": "propagation", "propagation.keep_diagonal": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOKE)
def test_smoke_run_of_every_other_config(name, tmp_path, monkeypatch):
    for variable, value in cli.LOG_COMPILES.items():
        monkeypatch.setenv(variable, value)
    config, fields = SMOKE[name]
    out, error = cli.run(config, tmp_path / "run", **fields)
    assert cli.compiled(error)["train_step"] == (2 if name == "maml_pp" else 1)  # its first-order steps come first
    assert cli.compiled(error)["evaluate"] == 1
    assert (tmp_path / "run" / "DONE").exists()
    lines = running.metrics(tmp_path / "run")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4]
    expected = {
        "tapl": TRAIN | TAPL,
        "tapl on cxgrad": TRAIN | TAPL | CXGRAD,
        "propagation": TRAIN - {"adaptation_loss"},
    }
    assert {*lines[0]} == expected.get(name, TRAIN)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    transductive = {"transductive"} if config == "tapl" else set()
    assert results.keys() == RESULTS | transductive | (PSEUDO if name.startswith("tapl") else set())
    evaluated = [line.keys() for line in lines if line["kind"] == "evaluate"]
    assert evaluated == [EVALUATE | transductive] * 2
    assert ("Transductive: the run adapts to query images too" in out) == bool(transductive)
    state = running.state_on_disk(tmp_path / "run")
    assert any("rates" in path for path in state) == (name == "maml_pp")
    assert any("sigma" in path for path in state) == (config == "tapl")
    check_figures(name, tmp_path / "run" / "figures", results)


def check_figures(name, folder, results):
    names = {file.name for file in folder.iterdir()}
    assert "training.png" in names
    assert ("gradient_norms.png" in names) == (name != "propagation")
    assert ("pseudo_labels.png" in names) == name.startswith("tapl")
    if name != "propagation":
        norms = json.loads((folder / "gradient_norms.json").read_text())
        assert {path.startswith("head") for path in norms} == {"anil": {True}, "boil": {False}}.get(name, {True, False})
    if name.startswith("tapl"):
        accuracy = json.loads((folder / "pseudo_labels.json").read_text())["pseudo_accuracy"]
        assert len(accuracy) == 2
        assert accuracy[-1] == pytest.approx(results["test_best_single_pseudo_accuracy_last"])
        assert all(0 < value < 1 for value in accuracy)


# --- killed and resumed ---------------------------------------------------------------------------------------------


def kill(folder, after_step, delay, name="cxgrad", **fields):
    """Start the run, and SIGKILL it so many seconds after it has logged a step; returns the last logged step."""
    process = cli.start(name, folder, **fields)
    running.wait_until(lambda: running.logged_step(folder) >= after_step, process)
    time.sleep(delay)
    process.kill()
    running.finish(process, -signal.SIGKILL)
    return running.logged_step(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sampler"), [("cxgrad", "device"), ("cxgrad", "official"), ("tapl", "device")])
def test_killed_four_times(name, sampler, finished, tmp_path):
    fields, straight = finished.fields | {"sampler": sampler}, finished.folder
    if (name, sampler) != ("cxgrad", "device"):
        straight = tmp_path / "straight"
        cli.run(name, straight, **fields)
    random, step = np.random.default_rng(len(sampler)), 0
    for _ in range(4):
        # Saves come every third step, so a delay of up to a step or two meets the writing of a checkpoint as well.
        step = kill(tmp_path / "run", step + random.integers(1, 6), random.uniform(0, 0.1), name, **fields)
        assert step < 40
    out, _ = cli.run(name, tmp_path / "run", **fields)
    assert re.search(r"run: resumed at step \d+ of 40\.", out)
    running.assert_same_run(straight, tmp_path / "run")


@pytest.mark.slow
def test_terminated_run_saves_leaves_and_resumes(finished, tmp_path):
    folder = tmp_path / "run"
    process = cli.start("cxgrad", folder, **finished.fields)
    running.wait_until(lambda: running.logged_step(folder) >= 1, process)
    process.terminate()
    started = time.monotonic()
    out, _ = running.finish(process, 0)
    assert time.monotonic() - started < 10
    (stopped,) = map(int, re.findall(r"run: stopped, saved at step (\d+); run the same command to resume", out))
    assert running.state_on_disk(folder)["['step']"] == stopped
    if stopped < 8:  # before the first evaluation nothing can be chosen for the test
        _, error = cli.run("cxgrad", folder, "--mode=eval", code=2, **finished.fields)
        assert re.fullmatch(r"Error: No checkpoint .* has been evaluated yet; .*\n", error)
    cli.run("cxgrad", folder, **finished.fields)
    running.assert_same_run(finished.folder, folder)
