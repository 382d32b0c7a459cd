"""The restart that huge pages need."""

import subprocess
import sys

import pytest

from common import huge_pages

SCRIPT = """
import os, sys
from common import huge_pages

print("started", sys.argv[1:], os.getpid(), sys.flags.optimize, sep="|")
huge_pages.restart()
print("goes on", os.environ["GLIBC_TUNABLES"], sep="|")
"""


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """What the system says, as a file that a test can write."""
    file = tmp_path / "enabled"
    file.write_text("always [madvise] never")
    monkeypatch.setattr(huge_pages, "_SETTING", file)
    monkeypatch.setattr(huge_pages.platform, "libc_ver", lambda: ("glibc", "2.36"))
    return file


def test_asked_for_beside_other_tunables(setting):
    assert huge_pages.changed({"A": "1"}) == {"A": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    changed = huge_pages.changed({"GLIBC_TUNABLES": "glibc.malloc.check=1"})
    assert changed == {"GLIBC_TUNABLES": "glibc.malloc.check=1:glibc.malloc.hugetlb=1"}


@pytest.mark.parametrize("value", ["0", "1"])
def test_asked_for_once_and_can_be_declined(setting, value):
    assert huge_pages.changed({"GLIBC_TUNABLES": f"glibc.malloc.hugetlb={value}"}) is None


@pytest.mark.parametrize("text", ["[always] madvise never", "always madvise [never]", None])
def test_left_alone_where_it_changes_nothing(setting, text):
    if text is None:
        setting.unlink()
    else:
        setting.write_text(text)
    assert huge_pages.changed({}) is None


def test_left_alone_without_glibc(setting, monkeypatch):
    monkeypatch.setattr(huge_pages.platform, "libc_ver", lambda: ("", ""))
    assert huge_pages.changed({}) is None


@pytest.mark.skipif(huge_pages.changed({}) is None, reason="this system has no huge pages to ask for")
def test_the_same_process_starts_once_more(tmp_path):
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    arguments = [sys.executable, "-O", str(file), "--a=1", "two words"]
    done = subprocess.run(arguments, env={}, capture_output=True, text=True, check=True)
    first, second, last = done.stdout.splitlines()
    assert first == second
    assert "--a=1" in first
    assert "two words" in first
    assert first.endswith("|1")
    assert last == "goes on|glibc.malloc.hugetlb=1"
