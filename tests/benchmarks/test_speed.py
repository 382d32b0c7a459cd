"""The page of speed: which rows of the reports it shows, and beside what."""

import json

import pytest

from benchmarks import scaling, speed
from tests import commands
from tests.common.toys import running

MACHINE = {"cpu": "a CPU", "cores": 2, "devices": ["cpu"], "load_average_1_min": 0.1, "jax": "0.10.2", "backend": "cpu"}


def rows(text):
    return [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_every_family_is_measured_by_both():
    assert speed.BENCHMARKS.keys() == scaling.FAMILIES.keys()
    for family, found in scaling.FAMILIES.items():
        config = commands.get_config(f"{family}/configs/{found.config}.py")
        commands.assert_fields(
            config, [found.batch, *found.fields, *(f for size in found.sizes.values() for f in size)]
        )


@pytest.mark.parametrize("family", speed.BENCHMARKS)
def test_lines_exist_in_the_report_that_is_there(family):
    file = commands.ROOT / "results" / f"{speed.BENCHMARKS[family].module}.json"
    if not file.exists():
        pytest.skip(f"{file.name} has not been measured yet")
    report = json.loads(file.read_text())
    names = {name for _, forms in speed.forms_of(report) for name in forms}
    lines = [line for line in speed.BENCHMARKS[family].lines if line.form in names]  # an older one may lack some
    assert lines
    for line in lines:
        assert line.reference in names or not line.reference
        assert not line.torch or any(speed.is_torch(line, name) for name in names)


def test_page_shows_steps_beside_references_and_devices_beside_the_first(tmp_path):
    forms = {
        "ViT": {"wall_ms": [10.0, 20.0, 30.0], "cpu_ms": [1.0], "compile_s": 2.0, "temporaries_mib": 3.0},
        "torch ViT, 1 thread": {"wall_ms": [20.0, 40.0, 60.0], "cpu_ms": [1.0]},
        "torch ViT, 2 threads": {"wall_ms": [30.0, 60.0, 90.0], "cpu_ms": [1.0]},
        "SL-ViT": {"wall_ms": [30.0, 20.0, 30.0], "cpu_ms": [1.0]},
    }
    (tmp_path / "vit_speed.json").write_text(json.dumps({"machine": MACHINE, "forms": forms}))
    row = {"cpu_ms": 5.0, "compile_s": 1.0, "temporaries_mib": 2.0}
    scaled = [
        {**row, "name": "devices", "devices": 1, "fields": {"batch_size": 64}, "step_ms": {"median": 10.0}},
        {**row, "name": "devices", "devices": 2, "fields": {"batch_size": 64}, "step_ms": {"median": 15.0}},
        {**row, "name": "64 px", "devices": 1, "fields": {"image_size": 64}, "step_ms": {"median": 40.0}},
    ]
    (tmp_path / "vit_small_scaling.json").write_text(json.dumps(scaled))
    found = rows(speed.markdown(speed.Session(False, False, tmp_path, "cpu", "cpu", 1)))
    assert ["| ViT", "20.0", "2.0", "3.0", "-", "-", "0.50", "[vit_speed.json](vit_speed.json) |"] in found
    assert ["| SPT and LSA", "30.0", "-", "-", "1.00", "ViT", "-", "[vit_speed.json](vit_speed.json) |"] in found
    assert ["| SL-ViT", "devices: 2, batch_size 64", "15.0", "5.0", "1.0", "2.0", "1.50 |"] in found
    assert ["| SL-ViT", "64 px", "40.0", "5.0", "1.0", "2.0", "1.00 |"] in found


def test_pytorch_is_left_out_on_an_accelerator(tmp_path):
    forms = {"ViT": {"wall_ms": [10.0], "cpu_ms": [1.0]}, "torch ViT": {"wall_ms": [20.0], "cpu_ms": [1.0]}}
    report = {"machine": {**MACHINE, "backend": "gpu"}, "forms": forms}
    (line,) = speed.step_rows(speed.BENCHMARKS["vit_small"].lines[0], report, "vit_speed.json")
    assert line[6] == "-"


def test_files_of_an_accelerator_have_its_name(tmp_path):
    session = speed.Session(True, False, tmp_path, "gpu", "NVIDIA H200", 1)
    assert session.file("vit_speed") == tmp_path / "vit_speed-nvidia-h200_quick.json"
    assert session.file("speed", "md") == tmp_path / "speed-nvidia-h200_quick.md"


@pytest.mark.slow
def test_smallest_size_of_cfa(tmp_path):
    file = tmp_path / "new" / "report.json"
    running.run_module("benchmarks.anomaly_speed", "--quick", "--repeats=1", f"--out={file}")
    report = json.loads(file.read_text())
    expected = {"step, naive", "step, fast with cached taps", "score, fast", "score, fast, only nearest"}
    assert expected <= report["forms"].keys()
    assert all(row["images_per_s"] > 0 for row in report["forms"].values())
    assert len({row["bank_mib"] for row in report["memory"]}) == 1
