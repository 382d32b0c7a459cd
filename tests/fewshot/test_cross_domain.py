"""A finished run evaluated on another data set: what is tested, where the numbers go, and that the run stays."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from common import phases
from common.data import registry
from common.errors import UserError
from fewshot import data, episodes, experiment
from tests.fewshot import cli


def load(**fields):
    return data.load(cli.config("cxgrad", **fields))


@pytest.fixture(scope="module")
def evaluated(finished, tmp_path_factory):
    """A copy of the finished run after an evaluation on digits, and what that printed."""
    folder = tmp_path_factory.mktemp("cross") / "run"
    shutil.copytree(finished.folder, folder)
    return folder, cli.run("cxgrad", folder, "--mode=eval", eval_dataset="digits", **finished.fields)[0]


def test_numbers_are_written_under_the_name_of_the_data_set(finished, evaluated):
    folder, output = evaluated
    values = json.loads((folder / "eval-digits.json").read_text())
    own = json.loads((finished.folder / "results.json").read_text())
    assert values.keys() == own.keys()  # nothing of the validation, which belongs to the glyphs
    assert "written to eval-digits.json" in output
    for name in ("best_step", "ensemble_size"):
        assert values[name] == own[name]  # the same checkpoints
    assert 0 <= values["test_ensemble_accuracy"] <= 1


@pytest.mark.slow
def test_evaluating_the_same_data_set_gives_the_numbers_of_the_run(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    cli.run("cxgrad", folder, "--mode=eval", eval_dataset="glyphs", **finished.fields)
    own = json.loads((finished.folder / "results.json").read_text())
    assert json.loads((folder / "eval-glyphs.json").read_text()) == pytest.approx(own, abs=1e-12)


def test_nothing_of_the_run_is_overwritten(finished, evaluated):
    folder, _ = evaluated

    def files(root):
        return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    before, after = files(finished.folder), files(folder)
    assert {name: after[name] for name in before} == before
    added = {name.as_posix() for name in after.keys() - before.keys()}
    figures = {f"figures/eval-digits/gradient_norms.{kind}" for kind in ("png", "svg", "json")}
    assert added == {"eval-digits.json", *figures}


def test_all_classes_of_a_set_without_fewshot_splits_are_tested():
    loaded = load(eval_dataset="digits", test_episodes=50, normalize="dataset")
    digits = data.pool(registry.load("digits", task="classification", image_size=16, channels=1))
    np.testing.assert_array_equal(loaded.arrays["held_out"], digits.images)
    sizes = np.bincount(digits.labels)
    np.testing.assert_array_equal(loaded.arrays["episodes"], episodes.official_episodes(985773, 0, 50, sizes, 5, 1, 3))
    assert (loaded.validation, loaded.test) == (range(0), range(50))
    assert set(digits.labels[loaded.arrays["episodes"]].ravel()) == set(range(10))


def test_images_are_normalised_as_in_training():
    config = cli.config("cxgrad", eval_dataset="digits", normalize="dataset")
    loaded = data.load(config)
    recipe = experiment.make_recipe(config, loaded.dataset, first_order=True, training=False)
    options = {"difficulty": "easy", "instances_per_class": 20}
    glyphs = registry.load("glyphs", task="fewshot", image_size=16, channels=1, options=options)
    assert (recipe.mean, recipe.std) == (glyphs.mean, glyphs.std)
    assert loaded.arrays["train"].shape == (1, 16, 16, 1)  # nothing is trained


def test_another_difficulty(monkeypatch):
    asked, original = [], data.datasets.load

    def spy(name, *, options, **rest):
        asked.append(options["difficulty"])
        return original(name, options=options | {"difficulty": "easy"}, **rest)  # which is rendered already

    monkeypatch.setattr(data.datasets, "load", spy)
    plain = load(eval_dataset="glyphs").arrays["held_out"]
    load(eval_dataset="glyphs", eval_difficulty="hard")
    assert asked == ["easy", "easy", "easy", "hard"]
    np.testing.assert_array_equal(plain, load().arrays["held_out"][-len(plain) :])


def photos(root, classes, per_class=4):
    random = np.random.default_rng(ord(classes[0]))
    for label in classes:
        (root / label).mkdir(parents=True)
        for index in range(per_class):
            pixels = random.integers(0, 256, (20, 18, 3), np.uint8)
            Image.fromarray(pixels).save(root / label / f"{index}.png")


def test_own_pictures_all_classes_or_the_test_folder(tmp_path):
    photos(tmp_path / "plain", "abcdef")
    loaded = load(eval_dataset="folder", eval_dataset_path=str(tmp_path / "plain"))
    assert loaded.arrays["held_out"].shape == (24, 16, 16, 1)  # resized, and grey as in training
    for split, classes in (("train", "abcde"), ("val", "fghij"), ("test", "klmno")):
        photos(tmp_path / "split" / split, classes)
    loaded = load(eval_dataset="folder", eval_dataset_path=str(tmp_path / "split"))
    assert loaded.arrays["held_out"].shape == (20, 16, 16, 1)
    assert jnp.asarray(loaded.arrays["episodes"]).max() < 20


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eval_dataset": "digit"}, "config.eval_dataset is 'digit': unknown data set 'digit'.*'digits'"),
        ({"eval_dataset": "digits", "ways": 11}, "config.ways is 11, but split 'test of digits' has 10 classes"),
        ({"eval_dataset": "digits", "eval_dataset_path": "/x"}, "'digits' is part of scikit-learn: leave "),
        ({"eval_dataset": "folder"}, "needs the folder of your pictures: set --config.eval_dataset_path="),
        ({"eval_dataset": "folder", "eval_dataset_path": "/nowhere"}, r"/nowhere \(--config.eval_dataset_path\) does"),
        ({"eval_dataset_path": "/x"}, "config.eval_dataset_path is '/x', but must come with config.eval_dataset"),
        ({"eval_difficulty": "hard"}, "config.eval_difficulty is 'hard', but must come with config.eval_dataset 'gl"),
        (
            {"eval_dataset": "glyphs", "eval_difficulty": "harder"},
            "'difficulty' .* must be one of easy, medium, hard",
        ),
        (
            {"eval_dataset": "cub_200_2011"},
            "'cub_200_2011' was not found .* common.data.prepare --name=cub_200_2011 .*--config.eval_dataset=glyphs",
        ),
    ],
)
def test_what_can_be_wrong(fields, message, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        experiment.build(cli.config("cxgrad", **fields), {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("new", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_fields_of_the_evaluation_are_refused_in_training(new, finished, tmp_path):
    folder = tmp_path / "run" if new else finished.folder
    _, error = cli.run("cxgrad", folder, code=2, **finished.fields, eval_dataset="digits")
    message = "config.eval_dataset is 'digits', but must be left empty in training: it is for finished runs"
    assert error == f"Error: {message}.\n"
    assert not (tmp_path / "run").exists()


def test_other_fields_must_be_those_of_the_run(finished):
    config = cli.config("cxgrad", **finished.fields | {"inner_steps": 3, "eval_dataset": "digits"})
    stages = phases.plan(config, experiment.build, None)
    with pytest.raises(UserError, match=r"has another config \(inner_steps: 2 -> 3\)"):
        phases.evaluate(stages, config, finished.folder, data.EVALUATION_FIELDS)
    assert not (finished.folder / "eval-digits.json").exists()
