"""The command line as a user types it: what a run leaves, kills in every phase, a teacher used by several runs."""

import json
import re
import signal

import pytest

from tests.common.toys import running
from tests.distill import cli

OF_A_STUDENT = {
    *("test_accuracy", "test_accuracy_ci95", "test_loss", "test_accuracy_best_epoch"),
    *("best_step", "train_images", "parameters"),
}


def lines(folder, kind):
    return [line for line in running.metrics(folder) if line["kind"] == kind]


def test_what_a_run_leaves(finished):
    assert {path.name for path in finished.folder.iterdir() if path.is_dir()} == {"teacher", "modules", "student"}
    for phase in ("teacher", "modules", "student"):
        trained = lines(finished.folder / phase, "train")
        assert [line["step"] for line in trained] == list(range(1, 7))
        assert (finished.folder / phase / "DONE").exists()
    assert lines(finished.folder / "student", "train")[0].keys() >= {"graphs", "cross_entropy", "accuracy"}
    assert lines(finished.folder / "modules", "train")[0].keys() >= {"estimation0", "estimation1", "loss"}
    results = json.loads((finished.folder / "student" / "results.json").read_text())
    assert results.keys() == OF_A_STUDENT | {"teacher_accuracy"}
    evaluated = lines(finished.folder / "student", "evaluate")
    assert results["test_accuracy"] == evaluated[-1]["accuracy"]
    assert results["test_accuracy_best_epoch"] == max(line["accuracy"] for line in evaluated)
    teacher = json.loads((finished.folder / "teacher" / "results.json").read_text())
    assert teacher.keys() == OF_A_STUDENT
    assert results["teacher_accuracy"] == pytest.approx(teacher["test_accuracy"])
    assert (finished.folder / "student" / "figures" / "training.png").exists()
    assert re.search(r"^\| student_test_accuracy +\| [\d.]+ +\|$", finished.out, re.MULTILINE)


@pytest.mark.slow
def test_killed_in_every_phase(finished, tmp_path):
    for phase in ("teacher", "modules", "student"):
        process = cli.start(*cli.flags("mhgd", tmp_path / "run", **finished.fields))
        file = tmp_path / "run" / phase / "metrics.jsonl"
        running.wait_until(lambda file=file: file.exists() and file.read_text().count("\n") >= 3, process)
        process.kill()
        running.finish(process, -signal.SIGKILL)
        assert not (tmp_path / "run" / phase / "DONE").exists()
    cli.run(*cli.flags("mhgd", tmp_path / "run", **finished.fields))
    running.assert_same_run(finished.folder, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fitnet", "dml", "iepkt", "sskd_svd"])
def test_one_teacher_for_several_runs(name, finished, tmp_path):
    teacher = {} if name == "dml" else {"teacher_checkpoint": finished.folder}
    cli.run(*cli.flags(name, tmp_path / "run", **teacher))
    results = json.loads((tmp_path / "run" / "student" / "results.json").read_text())
    assert results.keys() >= OF_A_STUDENT
    assert not (tmp_path / "run" / "teacher").exists()
    if name == "iepkt":
        shares = json.loads((tmp_path / "run" / "modules" / "results.json").read_text())
        assert all(0 <= value <= 1 for value in shares.values())
        assert list((tmp_path / "run" / "modules" / "figures").glob("*.png"))
