"""Every notebook is its .py, has no outputs, and runs."""

import json
import os
from pathlib import Path

import pytest

from tests.commands import ROOT

jupytext = pytest.importorskip("jupytext", reason="needs the extra [notebooks]")

SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))
SECONDS = 300  # a cell, on a busy machine


def test_there_is_a_notebook_for_each_family():
    assert len(SCRIPTS) == 7
    assert {path.stem for path in SCRIPTS} == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_notebook_is_its_script_without_outputs(script):
    page = json.loads(script.with_suffix(".ipynb").read_text())
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in page["cells"]]
    assert cells == [(cell.cell_type, cell.source) for cell in jupytext.read(script).cells]
    for cell in page["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_notebook_runs(script, tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(Path(os.environ["LEANVISION_CACHE"]) / "compiled"))
    page = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    client = nbclient.NotebookClient(page, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = [output for cell in page.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("image/png" in output["data"] for output in shown) >= 3
