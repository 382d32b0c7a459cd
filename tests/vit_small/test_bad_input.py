"""What a user can get wrong: one sentence that names it, exit code 2, no traceback, and nothing is lost."""

import re

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from tests.vit_small import cli
from vit_small import convert, experiment, predict
from vit_small.check import check_config


def refused(message, name="vit", **fields):
    """Checking a config of these fields fails with this sentence."""
    with pytest.raises(UserError, match=message) as caught:
        check_config(cli.config(name, **fields), 8, 64)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


@pytest.mark.parametrize("name", ["vit", "t2t", "cait", "pit", "swin"])
def test_smoke_variants_are_fine(name):
    check_config(cli.config(name, spt=True, lsa=True), 8, 64)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("vit", {"model.patch": 5}, r"config.model.patch is 5, but must divide config.image_size, 16"),
        ("vit", {"model.patch": 0}, "config.model.patch is 0"),
        (
            "vit",
            {"model.patch": 1, "spt": True},
            "config.shift_ratio is 0.5, but must move a patch of 1 by 1 to 1 whole",
        ),
        ("vit", {"model.depth": 0}, "config.model.depth is 0, but must be a number above 0"),
        ("cait", {"model.patch": 16, "lsa": True}, "config.model.patch is 16, but must leave at least 2 tokens"),
        ("t2t", {"model.heads": 3}, "config.model.heads is 3, but must divide config.model.width, 16"),
        ("t2t", {"model.soft_splits": 5}, "config.image_size is 16, but must be at least 32 for the soft splits"),
        ("t2t", {"image_size": 18}, "config.image_size is 18, but must be a multiple of 4"),
        ("pit", {"model.heads": (2, 4)}, r"config.model.heads is \(2, 4\), but must have 3 numbers"),
        ("pit", {"model.patch": 8}, "config.model.patch is 8, but must give a patch grid that can be halved 2 times"),
        (
            "swin",
            {"model.window": 16},
            "config.model.window is 16, but must be at least 1 and at most the patch grid, 8",
        ),
        ("swin", {"model.window": 3}, "config.model.window is 3, but must divide the grid of stage 0, 8 x 8"),
        ("swin", {"model.window": 1, "lsa": True}, "config.model.window is 1, but must leave at least 2 tokens"),
        ("swin", {"model.heads": (5, 6, 12)}, r"must divide the stages' widths, 12 in stage 0"),
        ("vit", {"batch_size": 0}, "config.batch_size is 0"),
        ("vit", {"batch_size": 193}, "config.batch_size is 193, but must be at most 192, an epoch of these data"),
        ("vit", {"drop_path": 1.0}, "config.drop_path is 1.0"),
        ("vit", {"directions": "diagonal"}, r"config.directions .*\(did you mean 'diagonal4'\?\)"),
        ("vit", {"spt_form": "fast"}, "config.spt_form is 'fast', but must be one of 'reference', 'fused'"),
        ("vit", {"lsa_parts": "masks"}, r"config.lsa_parts .*\(did you mean 'mask'\?\)"),
        ("vit", {"selection": "train"}, "config.selection is 'train', but must be one of 'test', 'held_out'"),
        ("vit", {"mean": (0.5,)}, r"config.mean is \(0.5,\), but must be empty \(measured\) or have 3 numbers"),
        ("vit", {"model.architecture": "vitt"}, r"config.model.architecture .*\(did you mean 'vit'\?\)"),
        ("vit", {"keep_best": 0}, "config.keep_best is 0, but must be 1"),
    ],
)
def test_value_that_cannot_work(name, fields, message):
    refused(message, name, **fields)


def build_refused(message, **fields):
    with pytest.raises(UserError, match=message):
        experiment.build(cli.config(**fields), {})


def test_recipe_that_cannot_work():
    build_refused("the augmentation's policy is 'cifar'.*did you mean 'cifar10'", **{"augmentation.policy": "cifar"})
    build_refused("the augmentation's mixup is 0.9", **{"augmentation.mixup": 0.9})
    build_refused("warmup_steps is 4, but must be below total_steps", **{"optimizer.warmup_steps": 4})


def test_official_weights_for_a_network_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match=r"config.model.patch is 5, but must divide config.image_size, 16"):
        convert.read(cli.config("vit", **{"model.patch": 5}), tmp_path / "official.pth", "", 8, tmp_path / "run")
    with pytest.raises(UserError, match=r"official.pth"):
        convert.read(cli.config("vit"), tmp_path / "official.pth", "", 8, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("variant", ["cifar10", "cifar100", "svhn", "tiny_imagenet"])
def test_published_variants_say_which_data_are_missing(variant, tmp_path, monkeypatch):
    from vit_small.configs import swin

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    config = swin.get_config(variant)
    with pytest.raises(UserError, match=f"data set {config.dataset!r} was not found .*--config.dataset=glyphs"):
        experiment.build(config, {})


def write_pictures(root, classes, per_class=4):
    random = np.random.default_rng(0)
    for label in range(classes):
        (root / f"class{label}").mkdir(parents=True)
        for index in range(per_class):
            Image.fromarray(random.integers(0, 256, (20, 18, 3), np.uint8)).save(
                root / f"class{label}" / f"{index}.png"
            )


def test_own_pictures(tmp_path):
    write_pictures(tmp_path / "good", 3)
    own = experiment.build(cli.config(dataset="folder", dataset_path=str(tmp_path / "good")), {})
    assert own.data["images"].shape == (9, 16, 16, 3)
    write_pictures(tmp_path / "one", 1)
    build_refused("holds 1 class folders, but at least 2", dataset="folder", dataset_path=str(tmp_path / "one"))
    build_refused("needs the folder of your pictures", dataset="folder")
    broken = tmp_path / "good" / "class1" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    build_refused(
        rf"picture {re.escape(str(broken))} cannot be read", dataset="folder", dataset_path=str(tmp_path / "good")
    )


def error_of(program, *arguments, devices=1):
    """The one sentence on standard error of a command that must fail with exit code 2."""
    out, error = cli.run(program, *arguments, devices=devices, code=2)
    assert "Traceback" not in out + error
    assert error.count("\n") == 1, error
    return error


def test_unknown_variant(tmp_path):
    error = error_of("main", "--config=vit_small/configs/vit.py:smok", f"--workdir={tmp_path / 'run'}")
    assert re.search(
        r"variant 'smok' does not exist \(did you mean 'smoke'\?\); known variants: cifar10, cifar100", error
    )


def test_batch_that_does_not_divide_over_the_devices(tmp_path):
    error = error_of("main", *cli.flags("vit", tmp_path / "run", batch_size=12), devices=8)
    assert "config.batch_size gives a global batch of 12, which does not divide over 8 devices" in error


def test_analysis_before_training(tmp_path):
    error = error_of("main", *cli.flags("vit", tmp_path / "run"), "--mode=analyse")
    assert re.match("Error: There is no run in .*; train first", error)


def test_prediction_without_what_it_needs(finished, tmp_path, capsys):
    def refused(*arguments):
        assert predict.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        return error

    run, pictures = f"--workdir={finished.folder}", [f"--images={tmp_path}", f"--out={tmp_path / 'out.csv'}"]
    assert "are required: --workdir, --images, --out; --help lists the flags" in refused()
    assert "invalid choice: 'first'" in refused(run, *pictures, "--which=first")
    assert "--batch_size is 0, but must be at least 1" in refused(run, *pictures, "--batch_size=0")
    assert "there is no such file or folder" in refused(run, "--images=nowhere", pictures[1])
    assert "holds no pictures (.png, .jpg" in refused(run, *pictures)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert "is no finished run of this method" in refused(f"--workdir={tmp_path}", *pictures)
    assert "broken.png cannot be read" in refused(run, *pictures)
    assert not (tmp_path / "out.csv").exists()
