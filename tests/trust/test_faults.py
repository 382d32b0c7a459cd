"""Disks that are full or read-only: one sentence, and what was saved before stands."""

import errno
import os
import re
import sys

import pytest

from common import app, phases, workdir
from common.errors import UserError
from tests.common.test_app import call  # noqa: F401
from tests.common.toys import running
from tests.common.toys.fixtures import compilation_cache  # noqa: F401

# ml_collections reads config files in a way that Python 3.12 dropped, where it takes another.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


# No file of the process that it turns into may grow beyond so many bytes, as if the disk were full.
LARGEST_FILE = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_full_disk_while_saving(tmp_path, monkeypatch, capsys):
    config = running.toy(width=4000, learning_rate=1e-5)  # checkpoints of 250 kB
    running.train(config, tmp_path / "straight")
    running.stop_after(monkeypatch, 6)
    running.train(config, tmp_path / "run")
    limited = [sys.executable, "-c", LARGEST_FILE, "60000", *running.command(config, tmp_path / "run")]
    _, error = running.finish(running.open_process(limited), code=2)
    assert re.search(r"^Error: .* cannot be written to .*run/checkpoints \(File too", error, re.MULTILINE)
    capsys.readouterr()
    running.train(config, tmp_path / "run")
    assert "resumed at step 6 of 20" in capsys.readouterr().out
    running.assert_same_run(tmp_path / "straight", tmp_path / "run")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_disk_that_fills_or_becomes_read_only_is_a_sentence(code, call, tmp_path, monkeypatch):  # noqa: F811
    def fail(*_):
        raise OSError(code, os.strerror(code), str(tmp_path / "run" / "metrics.jsonl"))

    monkeypatch.setattr(phases, "train", fail)
    status, out, error = call(running.toy(), tmp_path / "run")
    assert (status, out) == (2, "")
    assert error == (
        f"Error: {tmp_path / 'run' / 'metrics.jsonl'} cannot be written ({os.strerror(code)}); mend that and run the "
        "same command: it resumes from the last checkpoint.\n"
    )


def test_other_errors_of_the_system_are_not_taken_for_a_full_disk(call, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(app.phases, "train", lambda *_: (tmp_path / "nowhere").read_text())
    with pytest.raises(FileNotFoundError):
        call(running.toy(), tmp_path / "run")


def test_read_only_work_directory(tmp_path, monkeypatch):
    def fail(file, text):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))

    monkeypatch.setattr(workdir, "_write", fail)
    with pytest.raises(UserError, match=r"The work directory .*run cannot be used \(Read-only file system\); choose"):
        running.train(running.toy(), tmp_path / "run")
