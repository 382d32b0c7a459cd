"""The command line as a user types it: what a run leaves, kills, categories, predictions."""

import csv
import json
import signal

import numpy as np
import pytest
from PIL import Image

from common.data import faces
from fer import metrics, predict
from tests.common.toys import running
from tests.fer import cli

FIGURES = {"plan", "features", "scatter", "residuals", "training"}


def faces_of(**fields):
    config = cli.config(**fields)
    return faces.load("faces", image_size=config.image_size, options=config.faces.to_dict())


def test_what_a_run_leaves(finished):
    lines = running.metrics(finished.folder)
    by_kind = {kind: [line for line in lines if line["kind"] == kind] for kind in ("train", "evaluate")}
    assert [line["step"] for line in by_kind["train"]] == list(range(1, 13))
    assert [line["step"] for line in by_kind["evaluate"]] == [6, 12]
    # The second update begins in step 1 (counted from 0).
    assert "identity_risk" not in by_kind["train"][0]
    assert all(
        line.keys() >= {"loss", "mse", "identity_risk", "shift", "encoder_gradient"} for line in by_kind["train"][1:]
    )
    results = json.loads((finished.folder / "results.json").read_text())
    of_split = {f"{name}_{output}" for name in (*metrics.NAMES, "identity_bias") for output in metrics.OUTPUTS}
    of_split |= {*metrics.NAMES, "identity_bias"} | {f"official_{n}" for n in metrics.NAMES}
    for split in ("seen", "validation", "test"):
        assert {f"{split}_{name}" for name in of_split} <= results.keys()
    assert results["identity_gap"] == pytest.approx(results["seen_ccc"] - results["test_ccc"])
    assert results["validation_ccc"] == pytest.approx(by_kind["evaluate"][-1]["ccc"])
    best = max(by_kind["evaluate"], key=lambda line: line["ccc"])
    assert results["best_step"] == best["step"]
    assert {file.stem for file in (finished.folder / "figures").iterdir()} == FIGURES
    assert "faces (synthetic): train 4 identities, 64 frames; seen 4 identities, 16 frames" in finished.out
    assert json.loads((finished.folder / "model.json").read_text())["synthetic"] is True


def test_predictions(finished, tmp_path):
    test = faces_of().splits["test"]
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    for i, image in enumerate(test.images):
        Image.fromarray(image).save(pictures / f"{i:03d}.png")
    said, _ = cli.run(
        "predict", f"--workdir={finished.folder}", f"--images={pictures}", f"--out={out}", "--batch_size=7"
    )
    assert f"{len(test)} pictures" in said
    with (out / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    found = np.array([[float(row["valence"]), float(row["arousal"])] for row in rows])
    results = json.loads((finished.folder / "results.json").read_text())
    again = metrics.standard(found, test.valence_arousal)
    np.testing.assert_allclose(again["ccc"].mean(), results["test_ccc"], atol=1e-4)
    np.testing.assert_allclose(again["rmse"].mean(), results["test_rmse"], atol=1e-4)
    assert {row["category"] for row in rows} <= set(faces.CATEGORIES)
    assert (out / "predictions.png").stat().st_size > 10_000
    _, error = cli.run(
        "predict", f"--workdir={finished.folder}", f"--images={pictures}", f"--out={out}", code=2
    )  # nothing is overwritten
    assert "exists already" in error


@pytest.mark.slow
def test_categories_with_age_bins(tmp_path):
    folder = tmp_path / "run"
    fields = {"task": "category", "identity": "age", "best_metric": "accuracy"}
    people = {"faces.train_identities": 8, "batch_identities": 2, "identities": 2}
    cli.run("main", *cli.flags("elim", folder, **fields, **people))
    results = json.loads((folder / "results.json").read_text())
    assert 0 <= results["test_accuracy"] <= 1
    assert results["identity_gap"] == pytest.approx(results["seen_accuracy"] - results["test_accuracy"])
    assert {file.stem for file in (folder / "figures").iterdir()} == {"plan", "features", "training"}
    model = predict.open_run(folder)
    test = faces_of(**people).splits["test"]
    probabilities = predict.predict_pictures(model, test.images, 16)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    rows = predict.rows_of(model, [tmp_path / "a.png"] * len(test), probabilities)
    assert {row["category"] for row in rows} <= set(faces.CATEGORIES[:7])
    assert all(row["valence"] == row["arousal"] == "" for row in rows)


@pytest.mark.slow
def test_killed_runs_go_on_as_if_nothing_had_happened(finished, tmp_path):
    folder = tmp_path / "killed"
    arguments = cli.flags("elim", folder, **finished.fields)
    random, step = np.random.default_rng(0), 0
    for _ in range(3):
        process = cli.start("main", *arguments)
        goal = step + int(random.integers(1, 4))
        running.wait_until(lambda goal=goal: running.logged_step(folder) >= goal, process)
        process.kill()
        running.finish(process, -signal.SIGKILL)
        step = running.logged_step(folder)
        assert step < 12
    cli.run("main", *arguments)
    running.assert_same_run(finished.folder, folder)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["elim", "plain"])
def test_learns(method, tmp_path):
    """From pictures of ten people to others; three hundred updates of a small network."""
    fields = {
        **{"faces.train_identities": 10, "faces.validation_identities": 4, "faces.test_identities": 4},
        **{"faces.curvature_std": 0.0, "faces.gain_std": 0.0, "faces.frames": 40, "image_size": 32},
        **{"model.filters": "(8, 16, 16)", "model.latent": 32, "model.header_factor": 4},
        **{"batch_identities": 6, "batch_frames": 8, "num_steps": 150, "optimizer.decay_steps": "(120,)"},
        **{"log_every_steps": 50, "eval_every_steps": 75, "save_every_steps": 75, "optimizer.learning_rate": 3e-3},
    }
    folder = tmp_path / "run"
    cli.run("main", *cli.flags(method, folder, **fields))
    assert json.loads((folder / "results.json").read_text())["test_ccc"] > 0.4


@pytest.mark.slow
def test_pictures_read_in_each_step_give_the_same_run(tmp_path):
    """From a CSV file, in memory and streamed."""
    data = faces_of()
    lines = ["path,identity,valence,arousal,split"]
    for name, kind in (("train", "train"), ("validation", "validation"), ("test", "test")):
        split = data.splits[name]
        for i, (who, label) in enumerate(zip(split.identity, split.valence_arousal, strict=True)):
            Image.fromarray(split.images[i]).save(tmp_path / f"{name}{i}.png")
            lines.append(f"{name}{i}.png,{split.identity_names[who]},{label[0]},{label[1]},{kind}")
    (tmp_path / "faces.csv").write_text("\n".join(lines) + "\n")
    fields = {"dataset": "csv", "dataset_path": tmp_path / "faces.csv", "sampler": "uniform", "batch_size": 16}
    fields |= {"mean": "(0.5, 0.5, 0.5)", "std": "(0.25, 0.25, 0.25)"}
    for stream in (False, True):
        cli.run("main", *cli.flags("elim", tmp_path / str(stream), **fields, **{"table.stream": stream}))
    memory, streamed = tmp_path / "False", tmp_path / "True"
    running.assert_same_arrays(running.state_on_disk(memory), running.state_on_disk(streamed), 1e-6)
    results = [json.loads((folder / "results.json").read_text()) for folder in (memory, streamed)]
    assert results[0] == pytest.approx(results[1], abs=1e-5)
