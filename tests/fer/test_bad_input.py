"""What a user can get wrong: one sentence that names it, exit code 2, no traceback, and nothing is lost."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

from common.data import faces
from common.errors import UserError
from fer import experiment, predict
from fer.check import check_batch, check_config
from fer.configs import elim
from tests.fer import cli


@pytest.mark.parametrize("name", ["elim", "plain", "penalty"])
def test_smoke_variants_are_fine(name):
    check_config(cli.config(name))


@pytest.mark.parametrize("variant", elim.VARIANTS)
def test_variants_are_fine(variant):
    check_config(elim.get_config(variant).lock())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "elm"}, r"config.method .*\(did you mean 'elim'\?\)"),
        ({"task": "categories"}, r"config.task .*\(did you mean 'category'\?\)"),
        ({"identity": "actor"}, "config.identity is 'actor', but must be one of 'person', 'age'"),
        ({"sampler": "balanced"}, r"config.sampler .*\(did you mean 'identity_balanced'\?\)"),
        ({"alignment": "max-filling"}, r"config.alignment .*\(did you mean 'max_filling'\?\)"),
        ({"matching.solver": "sinkhorn"}, "config.matching.solver is 'sinkhorn', but must be one of 'official', 'ott'"),
        ({"matching.shift": "first"}, r"config.matching.shift .*'first_sample'"),
        ({"matching.marginal_mass": "equal"}, "config.matching.marginal_mass is 'equal'"),
        ({"matching.weighting": "norms"}, r"config.matching.weighting .*\(did you mean 'norm'\?\)"),
        ({"matching.iterations": 0}, "config.matching.iterations is 0"),
        ({"matching.epsilon": 0.0}, "config.matching.epsilon is 0.0"),
        ({"identities": 1}, "config.identities is 1, but must be at least 2: one reference and one target"),
        ({"updates": 1}, 'config.updates is 1, but must be 2 for method "elim"'),
        ({"updates": 3}, "config.updates is 3, but must be 1 or 2"),
        ({"warm_up_full": 0}, "config.warm_up_full is 0, but must be at least warm_up_start, 1"),
        ({"matching_weight": 0.0}, "config.matching_weight is 0.0"),
        ({"encoder_clip": -1.0}, "config.encoder_clip is -1.0"),
        ({"header_statistics": "none"}, "config.header_statistics is 'none'"),
        ({"num_classes": 6}, "config.num_classes is 6, but must be 7 or 8"),
        ({"task": "category", "best_metric": "accuracy", "alignment": "gumbel"}, "have no intensity"),
        ({"task": "category"}, "config.best_metric is 'ccc', but must be one of 'accuracy'"),
        ({"best_metric": "rmse"}, "config.best_is_largest is True, but must be False for rmse"),
        ({"keep_best": 0}, "config.keep_best is 0"),
        ({"mean": (0.5,)}, r"config.mean is \(0.5,\), but must be empty"),
        ({"std": (0.5, 0.0, 0.5)}, "config.std is .* but must be numbers above 0"),
        ({"model.backbone": "resnet50"}, r"config.model.backbone .*\(did you mean 'resnet18'\?\)"),
        ({"model.dropout": 1.0}, "config.model.dropout is 1.0"),
        ({"model.filters": ()}, r"config.model.filters is \(\)"),
        ({"model.backbone": "alexnet"}, "config.image_size is 24, but must be at least 63 for AlexNet"),
        ({"model.backbone": "mixer"}, "config.model.patch is 16, but must divide the side of the pictures, 24"),
        ({"augmentation.crop": 25}, "config.augmentation.crop is 25, but must lie in 0..24"),
        ({"augmentation.crop": 20}, "config.augmentation.crop_padding is 2, but must be 0 where"),
        ({"augmentation.flip": 1.5}, "config.augmentation.flip is 1.5"),
        ({"encoder_weights": "resnet18:tv_in1k"}, "config.encoder_weights is .* must be .random. for this backbone"),
        ({"projection": "umap"}, "config.projection is 'umap', but must be one of 'pca', 'tsne'"),
    ],
)
def test_value_that_cannot_work(fields, message):
    with pytest.raises(UserError, match=message) as caught:
        check_config(cli.config(**fields))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


def test_batches_that_the_data_cannot_fill():
    for fields, message in (
        ({"batch_identities": 5}, r"config.batch_identities is 5, but must lie in 2..4, the identities to train on"),
        ({"batch_identities": 1}, "config.batch_identities is 1"),
        ({"batch_frames": 0}, "config.batch_frames is 0"),
        ({"sampler": "uniform", "batch_size": 65}, r"config.batch_size is 65, but must lie in 2..64, the frames"),
    ):
        with pytest.raises(UserError, match=message):
            check_batch(cli.config(**fields), frames=64, people=4)


def write(folder, rows, names=("path", "identity", "valence", "arousal"), pictures=True):
    """A CSV file of these rows and the pictures that they name."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for row in rows if pictures else ():
        Image.fromarray(random.integers(0, 256, (20, 20, 3), np.uint8)).save(folder / row[0])
    with (folder / "faces.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([names, *rows])
    return str(folder / "faces.csv")


def people(count, frames=3):
    return [[f"{who}_{i}.png", f"person{who}", 0.04 * i, -0.2] for who in range(count) for i in range(frames)]


def refused(path, message, **options):
    with pytest.raises(UserError, match=message) as caught:
        faces.load("csv", image_size=16, path=path, options=options)
    assert "\n" not in str(caught.value)


def test_own_faces(tmp_path):
    rows = people(8, 20)
    data = faces.load("csv", image_size=16, path=write(tmp_path, rows), options={"folds": 4, "fold": 1})
    splits = data.splits
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 64,
        "seen": 16,
        "validation": 40,
        "test": 40,
    }
    assert splits["train"].identity_names == splits["seen"].identity_names
    assert (
        len({*splits["train"].identity_names, *splits["validation"].identity_names, *splits["test"].identity_names})
        == 8
    )
    assert splits["train"].images.shape[1:] == (16, 16, 3)
    # Every person is tested once.
    tested = [
        name
        for fold in range(4)
        for name in faces.load(
            "csv", image_size=16, path=str(tmp_path / "faces.csv"), options={"folds": 4, "fold": fold}
        )
        .splits["test"]
        .identity_names
    ]
    assert sorted(tested) == [f"person{who}" for who in range(8)]


def test_own_splits_categories_and_ages(tmp_path):
    names = ("path", "identity", "valence", "arousal", "split", "category", "age")
    rows = [[*row, "test" if row[1] == "person2" else "train", "happy", 33] for row in people(3)]
    path = write(tmp_path, rows, names)
    splits = faces.load("csv", image_size=16, path=path, options={"seen": False}).splits
    assert sorted(splits) == ["test", "train"]
    assert (splits["train"].category == 1).all()
    assert (splits["train"].age == 33).all()
    rows[0][4] = "test"  # person0 trained on and tested
    refused(write(tmp_path, rows, names), "identity 'person0' of data set 'csv' is in both 'test' and 'train'")
    rows[0][4] = ""
    refused(write(tmp_path, rows, names), "gives a split for some frames only")
    rows[0][4] = "training"
    refused(write(tmp_path, rows, names), r"line 2 of .*: split is 'training', but must be one of train, validation")
    rows[0][4:6] = ["train", "hapy"]
    refused(write(tmp_path, rows, names), r"category is 'hapy' \(did you mean 'happy'\?\)")
    rows[0][5:] = ["happy", "old"]
    refused(write(tmp_path, rows, names), "age is 'old', but must be a number")


def test_broken_tables(tmp_path):
    refused("", "needs your CSV file: set --config.dataset_path=<file>")
    refused(str(tmp_path / "none.csv"), r"none.csv \(--config.dataset_path\) does not exist")
    refused(write(tmp_path, []), "names no frames")
    one = write(tmp_path, people(1))
    refused(one, r"has frames of 1 identity only \('person0'\)")
    refused(write(tmp_path, people(4)), "has 4 identities, too few for folds=6")
    names = ("path", "identity", "valance", "arousal")
    refused(write(tmp_path, people(8), names), r"has no column 'valence' \(did you mean 'valance'\?\)")
    for value, message in (
        ("nan", "valence is 'nan', but must lie in -1..1"),
        ("1.5", "valence is '1.5', but must lie in -1..1; --config.table.label_scale=0.1 is for labels from -10"),
        ("sad", "valence is 'sad', but must be a number"),
        ("", "valence is '', but must be a number"),
    ):
        rows = people(8)
        rows[4][2] = value
        refused(write(tmp_path, rows), f"line 6 of .*: {message}")
    rows = people(8)
    rows[1][1] = ""
    refused(write(tmp_path, rows), "line 3 of .* must name a picture and an identity")
    rows = people(8)
    refused(write(tmp_path, [*rows, rows[0]]), "is named twice")
    refused(write(tmp_path, rows), "option 'fold' is 6, but must lie in 0..5", fold=6)
    refused(write(tmp_path, rows), r"has no option 'foldz' \(did you mean 'fold'\?\)", foldz=1)
    (tmp_path / "1_1.png").unlink()
    refused(write(tmp_path, rows, pictures=False), "1_1.png, named in .*, is missing")
    (tmp_path / "1_1.png").write_bytes(b"no picture")
    refused(write(tmp_path, rows, pictures=False), "1_1.png cannot be read")
    (tmp_path / "faces.csv").write_bytes(b"\xff\xfe\x00path")
    refused(str(tmp_path / "faces.csv"), "cannot be read as CSV")


def test_ages_and_categories_that_are_missing(tmp_path):
    path = write(tmp_path, people(8, 8))
    common = {"dataset": "csv", "dataset_path": path, "image_size": 24}
    with pytest.raises(UserError, match=r"has no ages, so config.identity must be"):
        experiment.build(cli.config(identity="age", **common), {})
    with pytest.raises(UserError, match="has no frame with a category in 'train'"):
        experiment.build(cli.config(task="category", best_metric="accuracy", **common), {})


def test_embedded_faces_that_cannot_be():
    for options, message in (
        ({"train_identities": 1}, "'train_identities' of data set 'faces' is 1, but must be at least 2"),
        ({"confounding": 2.0}, "'confounding' of data set 'faces' must lie in 0..1"),
        ({"gain_std": -0.1}, "'gain_std' of data set 'faces' is -0.1, but must not be negative"),
    ):
        with pytest.raises(UserError, match=message):
            faces.load("faces", image_size=24, options=options)
    with pytest.raises(UserError, match="leave dataset_path empty"):
        faces.load("faces", image_size=24, path="photos")
    with pytest.raises(UserError, match=r"unknown face data set 'face' \(did you mean 'faces'\?\)"):
        faces.load("face", image_size=24)
    with pytest.raises(UserError, match="image_size must be at least 16"):
        faces.load("faces", image_size=8)


@pytest.mark.parametrize("name", ["afew_va", "affectnet", "aff_wild2"])
def test_published_sets_that_are_not_here(name, tmp_path):
    with pytest.raises(UserError, match=f"data set {name!r} was not found .*--config.dataset=faces"):
        faces.load(name, image_size=24)
    with pytest.raises(UserError, match=f"does not hold data set {name!r} as"):
        faces.load(name, image_size=24, path=str(tmp_path))


def picture(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(len(str(file)))
    Image.fromarray(random.integers(0, 256, (20, 20, 3), np.uint8)).save(file)


def test_layout_of_afew_va(tmp_path):
    for clip in range(8):
        frames = {f"{i:05d}": {"valence": clip - 3, "arousal": -10.0, "landmarks": []} for i in range(3)}
        for name in frames:
            picture(tmp_path / f"{clip:03d}" / f"{name}.png")
        (tmp_path / f"{clip:03d}" / f"{clip:03d}.json").write_text(json.dumps({"frames": frames}))
    data = faces.load("afew_va", image_size=16, path=str(tmp_path), options={"label_scale": 0.1, "seen": False})
    labels = {}
    for split in data.splits.values():
        for who, label in zip(split.identity, split.valence_arousal, strict=True):
            labels[split.identity_names[who]] = label.tolist()
    assert labels == {f"{clip:03d}": pytest.approx([(clip - 3) / 10, -1]) for clip in range(8)}
    with pytest.raises(UserError, match=r"frame 00000 of .*000.json has the label -3.0, which times label_scale=1.0"):
        faces.load("afew_va", image_size=16, path=str(tmp_path))
    (tmp_path / "003" / "003.json").write_text("{}")
    with pytest.raises(UserError, match=r"003\.json is no list of labelled frames"):
        faces.load("afew_va", image_size=16, path=str(tmp_path), options={"label_scale": 0.1})


def test_layout_of_affectnet(tmp_path):
    for folder in ("train_set", "val_set"):
        (tmp_path / folder / "annotations").mkdir(parents=True)
        for i in range(4):
            picture(tmp_path / folder / "images" / f"{i}.jpg")
            values = {"val": -2 if i == 3 else 0.1 * i, "aro": -0.5, "exp": i}
            for kind, value in values.items():
                np.save(tmp_path / folder / "annotations" / f"{i}_{kind}.npy", np.array(value))
    (tmp_path / "ages.csv").write_text("image,age\ntrain_set/images/1.jpg,40.5\n")
    splits = faces.load("affectnet", image_size=16, path=str(tmp_path), options={"seen": False}).splits
    assert len(splits["train"]) == len(splits["test"]) == 3  # one is not labelled
    assert splits["train"].category.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(splits["train"].age, np.array([np.nan, 40.5, np.nan], np.float32))
    (tmp_path / "val_set" / "annotations" / "1_aro.npy").unlink()
    with pytest.raises(UserError, match=r"annotation .*1_aro\.npy is missing or no number"):
        faces.load("affectnet", image_size=16, path=str(tmp_path))


def test_layout_of_aff_wild2(tmp_path):
    lists = {"Train_Set": ("a", "b"), "Validation_Set": ("c",)}
    for folder, videos in lists.items():
        (tmp_path / "annotations" / "VA" / folder).mkdir(parents=True)
        for video in videos:
            text = "valence,arousal\n0.5,-0.25\n-5,-5\n0.1,0.2\n"
            (tmp_path / "annotations" / "VA" / folder / f"{video}.txt").write_text(text)
            for frame in (1, 2):  # of the third none was cropped
                picture(tmp_path / "cropped_aligned" / video / f"{frame:05d}.jpg")
    splits = faces.load("aff_wild2", image_size=16, path=str(tmp_path)).splits
    assert splits["train"].identity_names == ("a", "b")
    assert splits["test"].valence_arousal.tolist() == [[0.5, -0.25]]
    (tmp_path / "annotations" / "VA" / "Train_Set" / "a.txt").write_text("valence,arousal\n0.5\n")
    with pytest.raises(UserError, match=r"line 2 of .*a\.txt must hold a valence and an arousal, but is '0.5'"):
        faces.load("aff_wild2", image_size=16, path=str(tmp_path))


def error_of(program, *arguments, devices=1):
    """The one sentence on standard error of a command that must fail with exit code 2."""
    out, error = cli.run(program, *arguments, devices=devices, code=2)
    assert "Traceback" not in out + error
    assert error.count("\n") == 1, error
    return error


def test_unknown_variant(tmp_path):
    error = error_of("main", "--config=fer/configs/elim.py:afew", f"--workdir={tmp_path / 'run'}")
    assert "variant 'afew' does not exist" in error


def test_batch_that_does_not_divide_over_the_devices(tmp_path):
    error = error_of("main", *cli.flags("elim", tmp_path / "run", batch_frames=3), devices=8)
    assert "config.batch_identities times batch_frames gives a global batch of 12, which does not divide" in error


def test_prediction_without_what_it_needs(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError, match="there is no such file or folder"):
        predict.predict(tmp_path, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match="holds no pictures"):
        predict.predict(tmp_path, tmp_path / "pictures", tmp_path / "out")
    picture(tmp_path / "pictures" / "a.png")
    with pytest.raises(UserError, match=r"is no finished run of this method: it has no model\.json"):
        predict.predict(tmp_path, tmp_path / "pictures", tmp_path / "out")
    with pytest.raises(UserError, match="lies inside --images"):
        predict.predict(tmp_path, tmp_path / "pictures", tmp_path / "pictures" / "out")
    assert not (tmp_path / "out").exists()
    error = error_of("predict", "--workdir=nowhere", "--images=nowhere")
    assert re.match("Error: --out is missing; for example: python -m fer.predict", error)
