"""The command line that the methods share; mistakes in the config itself are tested in test_config.py."""

import json
import shutil
import sys

import pytest
from absl.testing import flagsaver

from common import app, config
from tests.common.toys import experiment, running
from tests.common.toys.fixtures import compilation_cache  # noqa: F401

# ml_collections reads config files in a way that Python 3.12 dropped, where it takes another.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CONFIG = running.toy(num_steps=4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app") / "run"
    running.train(CONFIG, folder)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a toy's command line in this process: (exit code, standard output, standard error)."""

    def run(settings, folder, *flags, modes=None):
        argv = [flag for flag in running.command(settings, folder, *flags)[2:] if "compilation_cache" not in flag]
        monkeypatch.setattr(sys, "argv", [*argv, "--compilation_cache=off"])
        monkeypatch.chdir(running.ROOT)
        with flagsaver.flagsaver():
            config.parse_flags(sys.argv)
            code = app._main(None, experiment.phases, modes or {})
        return code, *capsys.readouterr()

    return run


def files(folder):
    """{path: content and time} of all files."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_command_line_trains_evaluates_and_stays_finished(tmp_path):
    folder = tmp_path / "run"
    out, error = running.run(CONFIG, folder)
    assert error == ""
    assert "train step compiled in" in out
    assert {".lock", "DONE", "checkpoints", "config.json", "environment.json", "metrics.jsonl", "results.json"} == {
        path.name for path in folder.iterdir()
    }
    before = files(folder)
    out, error = running.run(CONFIG, folder)
    assert f"The run in {folder} is finished already; use --mode=eval to evaluate it, or another --workdir." in out
    assert error == ""
    assert files(folder) == before


def test_finished_run_of_another_config_is_not_taken_for_this_one(call, copy):
    before = files(copy)
    code, out, error = call(running.toy(num_steps=4, width=9), copy)
    assert (code, out) == (2, "")
    assert error.startswith(f"Error: The run in {copy} has another config (width: 8 -> 9);")
    assert files(copy) == before


def test_evaluation_of_a_finished_run(call, copy):
    before = files(copy)
    code, out, error = call(CONFIG, copy, "--mode=eval")
    assert (code, error) == (0, "")
    assert f"Evaluation of {copy}, written to eval.json" in out
    assert json.loads((copy / "eval.json").read_text())["loss"] == pytest.approx(running.metrics(copy)[-1]["loss"])
    after = files(copy)
    assert after.keys() - before.keys() == {copy / "eval.json"}
    assert {path: after[path] for path in before} == before
    (copy / "eval.json").write_text('{"loss": 1}\n')
    assert "written to eval-2.json" in call(CONFIG, copy, "--mode=eval")[1]
    assert (copy / "eval.json").read_text() == '{"loss": 1}\n'


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode=eval"], "Error: There is no run in {}; train first with the same command and --mode=train."),
        (["--mode=evaluate"], "Error: --mode is 'evaluate', but one of train, eval, predict is expected."),
        (["--config.toy=bird"], "Error: config.toy is 'bird', but must be one of"),
        (["--config.batch_size=0"], "Error: config.batch_size is 0, but must be a number above 0."),
        (["--config.seed=-1"], "Error: config.seed is -1, but must lie between 0 and 4294967295."),
    ],
)
def test_mistake_is_one_sentence(flags, message, call, tmp_path):
    code, out, error = call(CONFIG, tmp_path / "run", *flags, modes={"predict": pytest.fail})
    assert (code, out) == (2, "")
    assert error.startswith(message.format(tmp_path / "run"))
    assert error.count("\n") == 1


def test_mode_of_a_method(call, tmp_path):
    seen = []
    code, _, _ = call(CONFIG, tmp_path / "run", "--mode=predict", modes={"predict": lambda *given: seen.append(given)})
    assert code == 0
    assert seen[0][0].num_steps == 4
    assert seen[0][1] == tmp_path / "run"
    assert not (tmp_path / "run").exists()


def test_nan_ends_with_code_one(call, tmp_path):
    settings = running.toy(plant="loss", plant_step=2, num_steps=4)
    code, _, error = call(settings, tmp_path / "run")
    assert code == 1
    assert error.startswith("Stopped: loss and the parameter ['head']['bias'] became non-finite at step 3")
    assert error.count("\n") == 1


def test_a_folder_that_cannot_be_made(call, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, error = call(CONFIG, tmp_path / "file")
    assert code == 2
    assert error.startswith(f"Error: The work directory {tmp_path / 'file'} cannot be used")


def test_without_a_config():
    _, error = running.finish(running.open_process([sys.executable, "-m", "tests.common.toys.main"]), code=2)
    assert error.startswith("--config is missing; for example: python -m tests.common.toys.main --config=")
    assert "Traceback" not in error
