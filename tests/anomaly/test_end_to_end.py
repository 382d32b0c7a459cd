"""The command line as a user types it: training, prediction, export; a kill and other devices change nothing."""

import csv
import json
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from anomaly import evaluation, experiment, export, inference, predict, report, setup
from common import phases
from common.data.anomaly.frame import as_rgb, open_picture
from common.step import Stepper
from tests.anomaly import cli
from tests.common.toys import running
from tests.common.toys.fixtures import compilation_cache  # noqa: F401

METRICS = {"image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro"}
TRAIN = {"step", "kind", "loss", "attraction", "repulsion", "radius"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The test images of the run as files, as they were before the frame: grey, 16 bits, RGBA and RGB."""
    folder = tmp_path_factory.mktemp("pictures")
    config = cli.config(resize=0, crop=(64, 64))
    dataset = setup.load_data(config)
    (folder / "more").mkdir()
    for index, pixels in enumerate(dataset.test):
        picture = Image.fromarray(pixels)
        if index == 0:
            picture = picture.convert("L")
        elif index == 1:
            picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 256 + 99)
        elif index == 2:
            picture = picture.convert("RGBA")
        picture.save(folder / ("more" if index % 2 else ".") / f"{index}.png")
    return folder


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes longer than such runs compute."""
    monkeypatch.setattr(report, "_figures", lambda *given: None)


@pytest.fixture(scope="module")
def model(finished):
    return inference.load_model(finished[0])


@pytest.fixture(scope="module")
def scored(model, pictures):
    """(images, [(map, score)]) of all pictures by name, scored in one batch."""
    files = sorted(pictures.rglob("*.png"))
    images = np.stack([model.frame.image(open_picture(file), str(file)) for file in files])
    return images, list(inference.Scorer(model, 8)(images))


def scores_of(folder):
    with (folder / "scores.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_what_a_run_leaves(finished):
    folder, out = finished
    assert "16 good images to train on; test images: 4 good, 1 foreign_texture" in out
    lines = running.metrics(folder)
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in trained] == list(range(1, 13))
    assert all(line.keys() == TRAIN for line in trained)
    assert [line["step"] for line in lines if line["kind"] == "evaluate"] == [2, 4, 6, 8, 10, 12]
    results = json.loads((folder / "results.json").read_text())
    names = {f"{before}{name}" for name in METRICS for before in ("", "untrained_", "best_on_test_")}
    assert results.keys() == names | {"bank_mib"}
    last = lines[-1]
    for name in METRICS:
        assert results[name] == last[name]
        assert results[f"best_on_test_{name}"] == max(line[name] for line in lines if line["kind"] == "evaluate")
    assert results["bank_mib"] == 8 * 8 * 28 * 4 / 2**20
    names = {file.name for file in (folder / "figures").iterdir()}
    assert names >= {"training.png", "examples.png", "scores.png"}
    assert (folder / "DONE").exists()
    assert "Warning" not in out
    measured = json.loads((folder / "throughput.json").read_text())
    assert measured["images_per_s"].keys() == {"1", "2"}
    assert min(measured["images_per_s"].values()) > 0
    assert f"Scoring on {measured['device']}, images/s: " in out


def test_radius_grows_and_the_bank_does_not_change(finished):
    radii = [line["radius"] for line in running.metrics(finished[0]) if line["kind"] == "train"]
    assert radii[0] == pytest.approx(1e-3, rel=0.05)  # Adam's first step is the learning rate
    assert radii == sorted(radii)
    steps = sorted(int(path.name) for path in (finished[0] / "checkpoints").iterdir())
    banks = [running.state_on_disk(finished[0], step)["['model_state']['bank']"] for step in steps]
    assert len(banks) > 1
    np.testing.assert_array_equal(banks[0], banks[-1])
    assert banks[0].any()


@pytest.mark.slow
def test_evaluation_again_gives_the_same_numbers(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    cli.run(tmp_path / "run", "--mode=eval")
    values = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert values == json.loads((finished[0] / "results.json").read_text())


def test_prediction_gives_the_scores_of_the_evaluation(finished, model, pictures, tmp_path):
    files = predict.find([str(pictures)])
    rows = predict.predict(model, files, tmp_path, batch_size=3)
    assert len(rows) == 8
    assert scores_of(tmp_path) == [{name: str(value) for name, value in row.items()} for row in rows]
    by_number = {int(file.stem): float(row["score"]) for (file, _), row in zip(files, rows, strict=True)}
    labels = np.array([0] * 4 + [1] * 4)
    found = evaluation.detection_metrics(
        np.zeros((8, 1, 1), np.float32), np.array([by_number[i] for i in range(8)]), labels, None, False
    )
    results = json.loads((finished[0] / "results.json").read_text())
    assert found["image_auroc"] == results["image_auroc"]
    for row in rows:
        above = float(row["score"]) >= model.calibration.image_threshold
        assert row["defective"] == above == (float(row["normalised_score"]) >= 0.5)
        with Image.open(tmp_path / row["heat_map"]) as picture:
            assert picture.size == (32, 32)


def test_an_image_scores_the_same_alone(model, scored):
    images, together = scored
    alone = [score for _, score in inference.Scorer(model, 1)(images[[0, 5]])]
    np.testing.assert_allclose(alone, [together[0][1], together[5][1]], rtol=1e-5)


def test_threshold_and_sensitivity(model):
    calibration = model.calibration
    low, high = calibration.shifted(0.9), calibration.shifted(0.1)
    assert low.image_threshold < calibration.image_threshold < high.image_threshold
    assert calibration.shifted(0.5) == calibration
    scores = np.array([calibration.image_threshold, calibration.high + 99, -99.0])
    np.testing.assert_array_equal(calibration.normalised(scores, calibration.image_threshold), [0.5, 1, 0])


def test_export_holds_everything(model, pictures, scored, tmp_path):
    """Preprocessing, weights, bank and threshold: the file alone gives the scores of `predict`, for any batch."""
    pytest.importorskip("flatbuffers", reason="jax.export serialises with flatbuffers, a dependency of this project")
    export.write(model, 64, 64, tmp_path / "scorer.npz")
    score, record = export.load(tmp_path / "scorer.npz")
    files = sorted(pictures.rglob("*.png"))
    pixels = np.stack([np.asarray(as_rgb(open_picture(file))) for file in files[2:]])
    expected = scored[1][2:]
    for count in (6, 1):
        found = score(pixels[:count])
        np.testing.assert_allclose(found.scores, [score for _, score in expected[:count]], rtol=1e-5)
        np.testing.assert_allclose(found.maps, [amap for amap, _ in expected[:count]], rtol=1e-5, atol=1e-5)
        calibration = model.calibration
        wanted = calibration.normalised(np.asarray(found.scores), calibration.image_threshold)
        np.testing.assert_allclose(found.normalised, wanted, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(found.defective, np.asarray(found.scores) >= calibration.image_threshold)
    assert (record["height"], record["width"]) == (64, 64)


@pytest.mark.slow
def test_eight_devices_give_the_bank_and_the_scores_of_one(tmp_path):
    """After one step: this loss of random features multiplies rounding by thousands in the next. With a large epsilon:
    without, AMSGrad turns noise into full steps."""
    fields = {"num_epochs": 1, "batch_size": 16, "optimizer.eps": 100.0, "throughput_batch_sizes": "()"}
    for devices in (1, 8):
        cli.run(tmp_path / str(devices), devices=devices, **fields)
    one, eight = (running.state_on_disk(tmp_path / name) for name in ("1", "8"))
    for path, leaf in one.items():
        share = 1e-4 if "opt_state" in path else 2e-6  # squares of gradients that are sums of large terms
        np.testing.assert_allclose(leaf, eight[path], rtol=0, atol=share * np.abs(leaf).max(initial=0), err_msg=path)
    first, other = (running.metrics(tmp_path / name) for name in ("1", "8"))
    assert [line["kind"] for line in first] == [line["kind"] for line in other] == ["train", "evaluate"]
    np.testing.assert_allclose(*([line[0][n] for n in sorted(TRAIN - {"kind"})] for line in (first, other)), rtol=1e-6)
    calibrations = [evaluation.read_calibration(tmp_path / name) for name in ("1", "8")]
    np.testing.assert_allclose(calibrations[0][:4], calibrations[1][:4], rtol=1e-5)


@pytest.mark.slow
def test_killed_run_resumes_bit_for_bit(finished, tmp_path):
    process, folder = cli.start(tmp_path / "run"), tmp_path / "run" / "checkpoints"
    running.wait_until(lambda: any(path.name.isdigit() for path in folder.glob("*")), process)
    process.kill()
    running.finish(process, -signal.SIGKILL)
    out, _ = cli.run(tmp_path / "run")
    assert "resumed at step" in out
    running.assert_same_run(finished[0], tmp_path / "run")


class Broken(Exception):
    """Ends a run in this process as suddenly as a kill: nothing more is saved."""


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"rotate_and_crop": True, "resize": 40}, {"bank": "nearest_ema", "cache_mib": 0.0}])
def test_broken_run_resumes_bit_for_bit(fields, no_figures, tmp_path, monkeypatch, capsys):
    """Turned anew at every use, and streamed images: what such runs need beside the state is in none of their files."""
    config = cli.config(throughput_batch_sizes=(), **fields)
    cli.train(config, tmp_path / "straight")
    original = Stepper.__call__

    def call(self, state, accumulated, step):
        if step == 7:
            raise Broken
        return original(self, state, accumulated, step)

    monkeypatch.setattr(Stepper, "__call__", call)
    with pytest.raises(Broken):
        cli.train(config, tmp_path / "run")
    monkeypatch.setattr(Stepper, "__call__", original)
    assert running.logged_step(tmp_path / "run") == 7  # which the last checkpoint is without
    cli.train(config, tmp_path / "run")
    assert "resumed at step 6 of 12" in capsys.readouterr().out
    running.assert_same_run(tmp_path / "straight", tmp_path / "run")


@pytest.mark.slow
def test_all_categories_in_one_run(no_figures, tmp_path):
    """A table over categories, which a stopped run takes up again where it was; all are evaluated again."""
    config = cli.config(
        category="all", num_epochs=1, throughput_batch_sizes=(), **{"textures.train_images": 8, "official_pro": True}
    )
    folder = tmp_path / "run"
    cli.train(config, folder)
    table, first = (folder / "table.csv").read_text(), (folder / "brick" / "metrics.jsonl").stat().st_mtime_ns
    shutil.rmtree(folder / "grass")  # as if stopped before the last category
    (folder / "DONE").unlink()
    (folder / "table.csv").unlink()
    cli.train(config, folder)
    assert (folder / "table.csv").read_text() == table
    assert (folder / "brick" / "metrics.jsonl").stat().st_mtime_ns == first
    with (folder / "table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["category"] for row in rows] == ["brick", "grass", "gravel", "mean"]
    results = {name: json.loads((folder / name / "results.json").read_text()) for name in ("brick", "grass", "gravel")}
    for row in rows[:3]:
        assert float(row["image_auroc"]) == results[row["category"]]["image_auroc"]
    mean = np.mean([result["aupro"] for result in results.values()])
    np.testing.assert_allclose(float(rows[3]["aupro"]), mean)
    assert (folder / "table.md").read_text().count("\n| ") == 4
    values = phases.evaluate(experiment.phases(config), config, folder)
    assert values == json.loads((folder / "results.json").read_text())
    assert values["grass_image_auroc"] == results["grass"]["image_auroc"]


@pytest.mark.slow
def test_grid_of_compressions_in_one_run(no_figures, tmp_path):
    """One phase for each pair, with its own bank; one table and one figure of all."""
    fields = {"grid.gamma_c": (1, 4), "grid.gamma_d": (16,), "num_epochs": 1, "textures.train_images": 8}
    config, folder = cli.config(**fields), tmp_path / "run"
    cli.train(config, folder)
    with (folder / "table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["gamma_c"], row["gamma_d"]) for row in rows] == [("1", "16"), ("4", "16")]
    assert [float(row["bank_mib"]) for row in rows] == [64 * 28 * 4 / 2**20, 16 * 28 * 4 / 2**20]
    for row in rows:
        phase = folder / f"gamma_c{row['gamma_c']}-gamma_d16"
        assert float(row["image_auroc"]) == json.loads((phase / "results.json").read_text())["image_auroc"]
        rates = json.loads((phase / "throughput.json").read_text())["images_per_s"]
        assert float(row["images_per_s_batch_1"]) == rates["1"]
        assert float(row["images_per_s_best_batch"]) == max(rates.values())
    assert (folder / "figures" / "compression.png").exists()
