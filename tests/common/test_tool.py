"""Command lines beside the training one never overwrite what is there."""

import pytest

from common import tool
from common.errors import UserError


def test_an_existing_file_is_not_taken(tmp_path):
    assert tool.new_file(tmp_path / "new.csv") == tmp_path / "new.csv"
    (tmp_path / "old.csv").write_text("mine")
    with pytest.raises(
        UserError, match=r"--out is '.*old.csv', which exists already; choose another name or remove it"
    ):
        tool.new_file(tmp_path / "old.csv")


def test_a_folder_is_made_unless_it_holds_an_earlier_result(tmp_path):
    folder = tool.new_folder(tmp_path / "a" / "b", "scores.csv")
    assert folder.is_dir()
    (folder / "other.txt").write_text("mine")
    tool.new_folder(folder, "scores.csv")
    (folder / "scores.csv").write_text("mine")
    with pytest.raises(UserError, match=r"scores.csv', which exists already"):
        tool.new_folder(folder, "scores.csv")
    with pytest.raises(UserError, match=r"other.txt cannot be used as a folder \(File exists\)"):
        tool.new_folder(folder / "other.txt", "scores.csv")
