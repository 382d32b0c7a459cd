"""The work directory: whose it is, and that nothing in it is lost."""

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from common import workdir
from common.errors import UserError
from tests.common.toys import running


def test_opened_twice_by_the_same_config(tmp_path):
    for _ in range(2):
        workdir.open_for_training(tmp_path / "a" / "b", running.toy())
        with workdir.hold(tmp_path / "a" / "b"):
            pass
    sessions = json.loads((tmp_path / "a" / "b" / "environment.json").read_text())
    assert len(sessions) == 2
    assert sessions[0].keys() >= {"python", "packages", "devices", "git", "processes"}
    assert json.loads((tmp_path / "a" / "b" / "config.json").read_text())["batch_size"] == 16


def test_held_by_one_process_at_a_time(tmp_path):
    workdir.open_for_training(tmp_path, running.toy())
    with workdir.hold(tmp_path):
        recorded = (tmp_path / "environment.json").read_text()
        with pytest.raises(UserError, match=r"Another process is training in .*; wait for it, stop it, or choose"):
            running.train(running.toy(), tmp_path)
        assert (tmp_path / "environment.json").read_text() == recorded
        assert not (tmp_path / "metrics.jsonl").exists()
    with workdir.hold(tmp_path):
        pass


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, capsys):
    def acquire(self):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(workdir.filelock.FileLock, "acquire", acquire)
    workdir.open_for_training(tmp_path, running.toy())
    with workdir.hold(tmp_path):
        assert (tmp_path / "environment.json").exists()
    assert "has no locks; do not start a second run there" in capsys.readouterr().err


def test_another_config_is_refused_by_field(tmp_path):
    workdir.open_for_training(tmp_path, running.toy())
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(UserError, match=r"has another config \(width: 8 -> 9\); choose another --workdir, or start"):
        workdir.open_for_training(tmp_path, running.toy(width=9))
    many = running.toy("refresh", width=9, batch_size=8, learning_rate=1.0, num_steps=3, seed=2, save_every_steps=1)
    with pytest.raises(UserError, match=r"batch_size: 16 -> 8; .*; \.\.\.\)"):
        workdir.check_config(tmp_path, many)
    assert (tmp_path / "config.json").read_text() == before


FIELDS = ("eval_set", "eval_path")  # as a method declares them


def with_evaluation(**fields):
    config = running.toy().copy_and_resolve_references().unlock()
    config.update({"eval_set": "", "eval_path": ""} | fields)
    return config.lock()


def test_declared_fields_may_differ_in_an_evaluation(tmp_path):
    plain, other = with_evaluation(), with_evaluation(eval_set="birds")
    workdir.open_for_training(tmp_path, plain)
    before = (tmp_path / "config.json").read_text()
    workdir.check_config(tmp_path, other, FIELDS)
    with pytest.raises(UserError, match=r"has another config \(eval_set: '' -> 'birds'\)"):
        workdir.check_config(tmp_path, other)
    with pytest.raises(UserError, match=r"has another config \(width: 8 -> 9\)"):
        workdir.check_config(tmp_path, with_evaluation(eval_set="birds", width=9), FIELDS)
    assert (tmp_path / "config.json").read_text() == before


def test_runs_from_before_the_fields_were_there(tmp_path):
    workdir.open_for_training(tmp_path, running.toy())
    workdir.check_config(tmp_path, with_evaluation(eval_set="birds"), FIELDS)


def test_declared_fields_stay_empty_in_training():
    workdir.check_unset(with_evaluation(), FIELDS)
    message = r"config.eval_set is 'birds', but must be left empty in training: it is for finished runs"
    with pytest.raises(UserError, match=message):
        workdir.check_unset(with_evaluation(eval_set="birds"), FIELDS)


def test_all_other_fields_of_a_run_must_agree(tmp_path):
    workdir.open_for_training(tmp_path, running.toy())
    with pytest.raises(UserError, match=r"has another config \(eval_every_steps: 5 -> 3\)"):
        workdir.check_config(tmp_path, running.toy(eval_every_steps=3))


def test_default_path():
    for config in (with_evaluation(), with_evaluation(eval_set="birds")):
        assert workdir.default_path(config, FIELDS) == workdir.default_path(running.toy())
    assert workdir.default_path(running.toy()) != workdir.default_path(running.toy(width=9))
    assert str(workdir.default_path(running.toy("refresh", seed=4))).startswith("runs/toy-refresh-seed4-")


def test_name_of_an_evaluation():
    def name(**fields):
        return workdir.evaluation_name(with_evaluation(**fields), FIELDS)

    assert name() == "eval"
    assert name(eval_set="birds") == "eval-birds"
    assert name(eval_set="folder", eval_path="/data/my birds/") == "eval-folder-my_birds"
    assert name(eval_set="folder", eval_path="birds/..") == f"eval-folder-{Path.cwd().name}"


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"The work directory .* cannot be used \(.*\); choose another --workdir"):
            workdir.open_for_training(path, running.toy())
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / ".hidden").write_text("")
    with pytest.raises(UserError, match=r"holds 'thesis.tex' but no config.json, so it is no run of this project"):
        workdir.open_for_training(tmp_path, running.toy())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_killed_while_the_config_was_written(tmp_path):
    (tmp_path / "config.json.partial").write_text('{"na')
    workdir.open_for_training(tmp_path, running.toy())
    assert json.loads((tmp_path / "config.json").read_text())["name"] == "toy"


def test_config_that_cannot_be_read(tmp_path):
    (tmp_path / "config.json").write_text('{"na')
    with pytest.raises(
        UserError, match=r"config.json is not readable as JSON .* restore it or choose another --workdir"
    ):
        workdir.open_for_training(tmp_path, running.toy())
    assert (tmp_path / "config.json").read_text() == '{"na'


@pytest.mark.parametrize("text", ["[{", '{"python": "3"}'])
def test_environment_that_cannot_be_read(text, tmp_path):
    workdir.open_for_training(tmp_path, running.toy())
    (tmp_path / "environment.json").write_text(text)
    with pytest.raises(UserError, match=r"environment.json is not a list of sessions; remove or restore it"):
        running.train(running.toy(), tmp_path)
    assert (tmp_path / "environment.json").read_text() == text


def test_evaluating_where_there_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"There is no run in .*; train first with the same command and --mode=train"):
        workdir.check_config(tmp_path / "absent", running.toy())
    assert not (tmp_path / "absent").exists()


def test_results_are_never_overwritten(tmp_path):
    files = [workdir.write_results(tmp_path, "eval", {"loss": loss}).name for loss in (1.0, 1.0, 2.0, 3.0, 2.0)]
    assert files == ["eval.json", "eval.json", "eval-2.json", "eval-3.json", "eval-2.json"]
    assert [json.loads((tmp_path / name).read_text())["loss"] for name in files] == [1.0, 1.0, 2.0, 3.0, 2.0]


def test_done(tmp_path):
    assert not workdir.is_done(tmp_path)
    workdir.mark_done(tmp_path)
    assert workdir.is_done(tmp_path)
    assert not workdir.is_done(tmp_path / "absent")


def test_what_a_finished_run_says_of_itself(tmp_path):
    for name, text, message in (
        ("config.json", '{"seed": 0}', "is no finished run of this method: it has no model.json; train to the end"),
        ("model.json", '{"mean": [0.5', "model.json is not readable as JSON .* remove .*DONE and run the command of"),
        ("config.json", '{"seed": 0', "config.json is not readable as JSON .* restore it"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=message):
            workdir.read_finished(tmp_path, "model.json")
    (tmp_path / "config.json").write_text('{"seed": 0}')
    (tmp_path / "model.json").write_text('{"mean": [0.5]}')
    assert workdir.read_finished(tmp_path, "model.json") == (ConfigDict({"seed": 0}), {"mean": [0.5]})
