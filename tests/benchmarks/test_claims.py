"""The rows of the claims table name configs and fields that exist, and runs that lie where they are looked for."""

import importlib.util
import itertools
import json
import re
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from benchmarks import claims
from benchmarks.claim_cells import FAMILIES
from benchmarks.papers import METHODS
from common.metrics import paired_difference_ci95
from tests import commands

RESULTS = json.loads((commands.ROOT / "results/claims.json").read_text())
CELLS = [(family, cell) for family, content in FAMILIES.items() for cell in content.cells]


@pytest.mark.parametrize(("family", "cell"), CELLS, ids=[f"{family}: {cell.name}" for family, cell in CELLS])
def test_row(family, cell):
    for variant in ("", "smoke"):
        commands.assert_fields(commands.get_config(cell.config, variant), {**cell.overrides, **cell.budget})
    assert importlib.util.find_spec(cell.module)


def test_rows_of_a_family_have_their_own_folders():
    for family, content in FAMILIES.items():
        folders = [claims.folder_of(Path("runs"), family, cell, 0) for cell in content.cells]
        assert len(set(folders)) == len(folders)


def test_runs_that_are_read_lie_where_the_overrides_say():
    for family, cell in CELLS:
        if cell.before is None:
            assert not any("{" in value for value in cell.overrides.values()), (family, cell.name)
        else:
            folder = str(claims.folder_of(Path("runs"), *cell.before, 3))
            assert folder in [value.format(runs="runs", seed=3) for value in cell.overrides.values()]


@pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
def test_method_is_compared_by_rows_and_metrics_that_exist(method):
    cells = {cell.name: cell for cell in FAMILIES[method.family].cells}
    for value in (method.baseline, method.own):
        assert value.metric in cells[value.row].metrics
    assert (commands.ROOT / method.folder / "README.md").is_file()
    commands.get_config(f"{method.folder}/configs/{method.config}.py")


def test_table_of_methods_has_what_was_measured_and_says_what_was_not():
    rows = [
        {"name": "MAML", "test_best_single_accuracy": {"values": [0.5, 0.52], "mean": 0.51, "ci95": 0.02}},
        {"name": "CxGrad", "test_best_single_accuracy": {"values": [0.6, 0.62], "mean": 0.61, "ci95": 0.02}},
    ]
    for row in rows:
        row |= {"minutes": [1.0, 3.0], "command": f"run {row['name']}"}
    results = {"fewshot": {"setting": "glyphs", "machine": "a CPU", "rows": rows}}
    short = claims.markdown_of_methods(results, whole=False).splitlines()
    assert len(short) == 2 + len(METHODS) == 12
    assert "MAML: 51.0 ± 2.0 | CxGrad: 61.0 ± 2.0 | +10.0 ± 0.0 | 2 | `python -m fewshot.main" in short[2]
    assert short[3].count("not run yet") == 1
    whole = claims.markdown_of_methods(results, whole=True).splitlines()
    assert "| glyphs | 2.0 | a CPU | `run CxGrad` |" in whole[2]
    assert len({line.count(" | ") for line in short}) == len({line.count(" | ") for line in whole}) == 1


def test_a_row_is_written_when_its_seeds_have_ended(tmp_path, monkeypatch):
    """Two runs at a time; the third row breaks down, and another session goes on from there."""
    broken = ["CxGrad, context off"]

    def run(family, cell, seed):
        if cell.name in broken:
            raise RuntimeError("broken")
        return {"results": dict.fromkeys(cell.metrics, 0.5 + 0.1 * seed), "minutes": 1.0}

    monkeypatch.setattr(claims, "_run", run)
    monkeypatch.setattr(claims, "draw", lambda *_: None)
    with flagsaver.flagsaver():
        flags.FLAGS(["claims", "--only=fewshot", f"--out={tmp_path}", "--readme=", "--jobs=2"])
        with pytest.raises(RuntimeError, match="broken"):
            claims.main([])
        broken.clear()
        found = json.loads((tmp_path / "claims.json").read_text())["fewshot"]
        assert [row["name"] for row in found["rows"]] == ["MAML", "CxGrad"]
        assert found["rows"][1]["test_best_single_accuracy"]["values"] == [0.5, 0.6, 0.7]
        assert "3 seeds; 2 of 4 rows so far; " in (tmp_path / "claims.md").read_text()
        claims.main([])
    found = json.loads((tmp_path / "claims.json").read_text())["fewshot"]
    assert [row["name"] for row in found["rows"]] == [cell.name for cell in FAMILIES["fewshot"].cells]
    assert "2 runs at a time" in found["machine"]
    assert "so far" not in (tmp_path / "claims.md").read_text()


@pytest.mark.parametrize("content", [None, "a page", "<!-- claims: begin --> a page"])
def test_page_without_a_place_for_the_table_is_refused_before_anything_runs(tmp_path, content):
    page = tmp_path / "page.md"
    if content is not None:
        page.write_text(content)
    with flagsaver.flagsaver():
        flags.FLAGS(["claims", "--only=fewshot", f"--out={tmp_path}", f"--readme={page}"])
        with pytest.raises(SystemExit, match="no file with the marks"):
            claims.main([])
    assert not (tmp_path / "claims.json").exists()
    assert content is None or page.read_text() == content


def test_smoke_runs_may_measure_less(tmp_path, monkeypatch):
    def run(family, cell, seed):
        return {"results": {cell.metrics[0]: 0.5 + 0.1 * seed}, "minutes": 1.0}

    monkeypatch.setattr(claims, "_run", run)
    monkeypatch.setattr(claims, "draw", lambda *_: None)
    with flagsaver.flagsaver():
        flags.FLAGS(["claims", "--only=pruning", "--quick", f"--out={tmp_path}", "--readme="])
        claims.main([])
        family = json.loads((tmp_path / "claims-quick.json").read_text())["pruning"]
        rows = family["rows"]
        assert family["setting"].startswith("SMOKE SIZE")
        assert [row["name"] for row in rows] == [cell.name for cell in FAMILIES["pruning"].cells]
        assert rows[0]["test_accuracy"]["values"] == [0.5, 0.6]
        flags.FLAGS(["claims", "--only=pruning", "--quick=false", f"--out={tmp_path}", "--readme="])
        with pytest.raises(KeyError):
            claims.main([])


def test_generated_tables_are_those_of_the_results():
    assert set(RESULTS) == set(FAMILIES)
    for name, family in FAMILIES.items():
        assert [row["name"] for row in RESULTS[name]["rows"]] == [cell.name for cell in family.cells], name
    assert claims.markdown_of_methods(RESULTS, whole=False) in (commands.ROOT / "README.md").read_text()
    tables = (commands.ROOT / "results/claims.md").read_text()
    assert claims.markdown_of_methods(RESULTS, whole=True) in tables
    assert claims.markdown(RESULTS, {name: Path(f"claims-{name}.png") for name in RESULTS}) in tables


@pytest.mark.parametrize("folder", sorted({method.folder for method in METHODS}))
def test_intervals_on_a_page_are_those_of_the_results(folder):
    """Whatever a method's page writes as a ± b is a row's mean, or how far it is from another row of its family."""
    measured = set()
    for name, family in FAMILIES.items():
        if family.cells[0].module == f"{folder}.main":
            rows = RESULTS[name]["rows"]
            for metric in family.cells[0].metrics:
                values = [row[metric]["values"] for row in rows]
                means = [(row[metric]["mean"], row[metric]["ci95"]) for row in rows]
                pairs = [paired_difference_ci95(*pair) for pair in itertools.permutations(values, 2)]
                measured |= {f"{100 * mean:.1f} ± {100 * half:.1f}" for mean, half in [*means, *pairs]}
                measured |= {f"{mean:.2f} ± {half:.2f}" for mean, half in means}  # factors, such as times faster
    page = (commands.ROOT / folder / "README.md").read_text()
    printed = set(re.findall(r"-?\d+\.\d+ ± \d+\.\d+", page))
    assert printed
    assert printed <= measured
