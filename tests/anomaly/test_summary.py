"""Tables and the figure over the phases of a run, from files as finished phases leave them."""

import json

import pytest

from anomaly import experiment, summary, throughput
from tests.anomaly import cli


def leave(folder, results, rates, **fields):
    """A finished phase."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "DONE").touch()
    throughput.write(folder, {"device": "abacus", "images_per_s": rates})


def test_categories_with_their_throughput(tmp_path):
    leave(tmp_path / "tile", {"image_auroc": 0.9, "bank_mib": 2.0}, {1: 3.0, 4: 8.0, 16: 7.0})
    leave(tmp_path / "pill", {"image_auroc": 0.8, "bank_mib": 2.0}, {4: 5.0})
    leave(tmp_path / "zipper", {"image_auroc": 0.1}, {1: 1.0})
    (tmp_path / "zipper" / "DONE").unlink()
    file = summary.write_categories(tmp_path, summary.read_results(tmp_path))
    assert file.read_text().splitlines() == [
        "| category | image auroc | bank mib | images per s batch 1 | images per s best batch |",
        "|---|---|---|---|---|",
        "| pill | 80.0 | 2 | - | 5 |",
        "| tile | 90.0 | 2 | 3 | 8 |",
        "| mean of textures | 90.0 | 2 | 3 | 8 |",
        "| mean of objects | 80.0 | 2 | - | 5 |",
        "| mean | 85.0 | 2 | 3 | 6.5 |",
        "",
        "Last epoch, in %. best on test: maximum over epochs of each metric by itself (optimistic).",
        "images/s: from pixels to maps, warm, on abacus; see each throughput.json.",
    ]
    assert (tmp_path / "table.csv").read_text().startswith("category,image_auroc,bank_mib,images_per_s_batch_1,")


def test_compressions_are_means_over_categories(tmp_path):
    for name, auroc in (("pill", 0.8), ("tile", 0.6)):
        for gamma_c, bank in ((16, 0.5), (1, 8.0)):
            gammas = {"gamma_c": gamma_c, "gamma_d": 2}
            leave(
                tmp_path / f"{name}-{gamma_c}",
                {"image_auroc": auroc - gamma_c / 100, "bank_mib": bank},
                {1: 4.0},
                **gammas,
            )
    file = summary.write_compressions(tmp_path, summary.read_results(tmp_path))
    assert file.read_text().splitlines()[2:4] == ["| 1 | 2 | 69.0 | 8 | 4 | 4 |", "| 16 | 2 | 54.0 | 0.5 | 4 | 4 |"]
    drawn = (tmp_path / "figures" / "compression.svg").read_text()
    assert "memory bank in MiB" in drawn
    assert "images" in drawn
    assert "pixels" not in drawn


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, [""]),
        ({"category": "all"}, ["brick", "gravel", "grass"]),
        ({"grid.gamma_c": (1, 4), "gamma_d": 8}, ["gamma_c1-gamma_d8", "gamma_c4-gamma_d8"]),
        (
            {"category": "all", "grid.gamma_d": (2, 16)},
            [f"{name}-gamma_c1-gamma_d{d}" for name in ("brick", "gravel", "grass") for d in (2, 16)],
        ),
    ],
)
def test_phases_of_a_run_over_several(fields, names):
    found = experiment.phases(cli.config(**fields))
    assert [phase.name for phase in found] == names
    for phase in found:
        assert phase.reported == bool(phase.name)
        if "gamma_d" in phase.name:
            assert phase.name.endswith(f"gamma_c{phase.overrides['gamma_c']}-gamma_d{phase.overrides['gamma_d']}")
        if fields.get("category") == "all":
            assert phase.name.startswith(phase.overrides["category"])
