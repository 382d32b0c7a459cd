"""The command line as a user types it: what a run leaves, kills, analysis, predictions, weights."""

import csv
import json
import re
import shutil
import signal
import time

import numpy as np
import pytest

from common import pretrained
from tests.common.toys import running
from tests.vit_small import cli, official
from vit_small import official_names
from vit_small.experiment import make_model

RESULTS = {
    *("test_accuracy", "test_accuracy_ci95", "test_loss", "test_accuracy_best_epoch"),
    *("best_step", "parameters", "million_macs"),
}


def test_what_a_run_leaves(finished):
    lines = running.metrics(finished.folder)
    by_kind = {kind: [line for line in lines if line["kind"] == kind] for kind in ("train", "evaluate")}
    assert [line["step"] for line in by_kind["train"]] == list(range(1, 25))
    assert [line["step"] for line in by_kind["evaluate"]] == [8, 16, 24]
    assert all(line.keys() == {"step", "kind", "loss", "accuracy", "temperature"} for line in by_kind["train"])
    assert all(line.keys() == {"step", "kind", "loss", "accuracy"} for line in by_kind["evaluate"])
    results = json.loads((finished.folder / "results.json").read_text())
    assert results.keys() == RESULTS
    # The last epoch is the headline; the best is the best of all evaluations.
    assert results["test_accuracy"] == by_kind["evaluate"][-1]["accuracy"]
    assert results["test_loss"] == by_kind["evaluate"][-1]["loss"]
    assert results["test_accuracy_best_epoch"] == max(line["accuracy"] for line in by_kind["evaluate"])
    assert (finished.folder / "figures" / "training.png").exists()
    description = json.loads((finished.folder / "model.json").read_text())
    assert len(description["class_names"]) == 8
    assert re.search(r"^\| test_accuracy +\| [\d.]+ +\|$", finished.out, re.MULTILINE)


@pytest.mark.slow
def test_killed_run_resumes_bit_for_bit(finished, tmp_path):
    process = cli.start("main", *cli.flags("vit", tmp_path / "run", **finished.fields))
    running.wait_until(lambda: running.logged_step(tmp_path / "run") >= 10, process)
    process.kill()
    running.finish(process, -signal.SIGKILL)
    assert 10 <= running.logged_step(tmp_path / "run") < 24
    out, _ = cli.run("main", *cli.flags("vit", tmp_path / "run", **finished.fields))
    assert re.search(r"run: resumed at step \d+ of 24\.", out)
    running.assert_same_run(finished.folder, tmp_path / "run")


@pytest.mark.slow
def test_killed_three_times(finished, tmp_path):
    random, step = np.random.default_rng(0), 0
    for _ in range(3):
        process = cli.start("main", *cli.flags("vit", tmp_path / "run", **finished.fields))
        goal = step + int(random.integers(2, 6))
        running.wait_until(lambda goal=goal: running.logged_step(tmp_path / "run") >= goal, process)
        time.sleep(random.uniform(0, 0.1))
        process.kill()
        running.finish(process, -signal.SIGKILL)
        step = running.logged_step(tmp_path / "run")
        assert step < 24
    cli.run("main", *cli.flags("vit", tmp_path / "run", **finished.fields))
    running.assert_same_run(finished.folder, tmp_path / "run")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in ("t2t", "cait", "pit", "swin")]
)
def test_smoke_run_and_analysis_of_every_architecture(name, tmp_path):
    flags = cli.flags(name, tmp_path / "run", spt=True, lsa=True)
    cli.run("main", *flags)
    assert json.loads((tmp_path / "run" / "results.json").read_text()).keys() == RESULTS
    cli.run("main", *flags, "--mode=analyse")
    values = json.loads((tmp_path / "run" / "analysis.json").read_text())
    diagonals = [value for key, value in values.items() if key.endswith("_diagonal")]
    assert diagonals
    assert all(value == 0 for value in diagonals) == (name != "cait")  # whose official mask hides nothing


def test_analysis(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    out, _ = cli.run("main", *cli.flags("vit", folder, **finished.fields), "--mode=analyse")
    values = json.loads((folder / "analysis.json").read_text())
    assert "layer01_entropy" in out
    assert {"layer01_diagonal", "layer02_kl_to_uniform_over_allowed", "temperature02_mean"} <= values.keys()
    assert values["layer01_diagonal"] == values["layer02_diagonal"] == 0
    assert values["temperature01_min"] <= values["temperature01_mean"] <= values["temperature01_max"]
    assert values["temperature01_mean"] != 4  # has been learned
    names = {file.name for file in (folder / "figures").iterdir()}
    assert {"temperatures.png", "attention.png", "maps.png", "maps.svg"} <= names


def test_predictions(finished, tmp_path):
    from PIL import Image

    from common import data as datasets

    config = cli.config(**finished.fields)
    dataset = datasets.load("glyphs", task="classification", image_size=16, channels=3, options=config.glyphs.to_dict())
    test = dataset.splits["test"]
    for i, image in enumerate(test.images):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "pictures" / f"{i:03d}.png")
    out = tmp_path / "tables" / "out.csv"
    where = [f"--workdir={finished.folder}", f"--images={tmp_path / 'pictures'}", f"--out={out}"]
    said, _ = cli.run("predict", *where, "--batch_size=5")
    assert f"{len(test.labels)} pictures classified" in said
    with out.open() as stream:
        rows = list(csv.DictReader(stream))
    correct = [row["class1"] == test.class_names[label] for row, label in zip(rows, test.labels, strict=True)]
    results = json.loads((finished.folder / "results.json").read_text())
    assert np.mean(correct) == pytest.approx(results["test_accuracy"])
    assert all(float(row["probability1"]) >= float(row["probability2"]) >= float(row["probability3"]) for row in rows)


def test_official_weights_out_and_in(finished, tmp_path):
    file, fields = tmp_path / "official.safetensors", {"spt": True, "lsa": True}
    cli.run("convert", f"--workdir={finished.folder}", f"--out={file}")
    weights = pretrained.read_weights(file)
    assert "transformer.layers.1.0.fn.to_qkv.weight" in weights
    assert weights.keys() == {entry.official for entry in official_names.entries(make_model(cli.config(**fields), 8))}
    read = cli.flags("vit", tmp_path / "read", **fields)
    cli.run("convert", *read, f"--weights={file}", "--classes=8")
    before, after = (running.state_on_disk(folder) for folder in (finished.folder, tmp_path / "read"))
    for path, array in after.items():
        if path.startswith("['params']"):
            np.testing.assert_array_equal(array, before[path], err_msg=path)
    out, error = cli.run("convert", *read, f"--weights={file}", "--classes=9", code=2)
    assert "mlp_head.1.weight has shape" in error
    assert "Traceback" not in out + error


def test_golden_files_are_here():
    for name in ("spt", "attention", "models_tiny", "models_paper_size", "train_steps", "diagnostics", "augmentation"):
        assert official.golden(name)
