"""The rows of the claims table name configs and fields that exist, and runs that lie where they are looked for."""

import importlib
from pathlib import Path

import pytest

from benchmarks import claims
from benchmarks.claim_cells import FAMILIES

CELLS = [(family, cell) for family, content in FAMILIES.items() for cell in content.cells]


def config_of(cell, variant=""):
    return importlib.import_module(cell.config.removesuffix(".py").replace("/", ".")).get_config(variant)


@pytest.mark.parametrize(("family", "cell"), CELLS, ids=[f"{family}: {cell.name}" for family, cell in CELLS])
def test_row(family, cell):
    for variant in ("", "smoke"):
        fields = config_of(cell, variant).to_dict()
        for path in {**cell.overrides, **cell.budget}:
            place = fields
            for name in path.split("."):
                assert name in place, f"config.{path}"
                place = place[name]
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
