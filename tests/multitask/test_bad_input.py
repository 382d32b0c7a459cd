"""What a user can get wrong: one sentence that names it, exit code 2, no traceback."""

import re

import pytest

from common.errors import UserError
from multitask import experiment
from tests.multitask import cli

BAD = [
    ({"tasks": ("rotations",)}, r"config.tasks is \('rotations',\), but may hold 'adversarial', 'autoencoder'"),
    ({"tasks": ("rotation", "rotation")}, "config.tasks .* must not hold a task twice"),
    (
        {"tasks": (), "transfers": ()},
        r"config.transfers is \(\), but must hold a target task where config.tasks is empty",
    ),
    ({"transfers": ("segmentation",)}, "config.transfers .* may hold 'classification', 'clustering', 'detection' only"),
    ({"tasks": ("jigsaw",), "jigsaw.crop": 16}, r"config.jigsaw.grid is 3, but must divide the 16 pixels"),
    ({"tasks": ("jigsaw",), "jigsaw.crop": 0}, r"config.jigsaw.grid is 3, but must divide the 16 pixels"),
    ({"tasks": ("jigsaw",), "jigsaw.crop": 30}, "config.jigsaw.crop is 30, but must be 0 to config.image_size, 16"),
    ({"tasks": ("jigsaw",), "jigsaw.crop": 0, "jigsaw.grid": 2}, "config.jigsaw.num_perms is 30, but must be 2 to 24"),
    ({"tasks": ("jigsaw",), "jigsaw.grid": 4}, "config.jigsaw.grid is 4, but must be 2 or 3"),
    ({"tasks": ("rotation",), "rotation.num_views": 2}, "config.rotation.num_views is 2, but must be 1 or 4"),
    ({"clustering_task.num_clusters": 1}, "config.clustering_task.num_clusters is 1, but must be at least 2"),
    ({"clustering_task.balance": "weight"}, r"config.clustering_task.balance .*\(did you mean 'weights'\?\)"),
    ({"tasks": ("denoising",), "denoising.std": -1.0}, "config.denoising.std is -1.0"),
    ({"tasks": ("adversarial",), "adversarial.b1": 1.0}, "config.adversarial.b1 is 1.0"),
    ({"task_weights": (0.5, 0.5)}, "config.task_weights .* have 3 numbers of at least 0, one for each task"),
    ({"task_weights": (0.5, 0.5, 0.5)}, "config.task_weights .* must add up to 1"),
    ({"weighting.lambdas": (1.0, -1.0, 1.0)}, "config.weighting.lambdas .* must be empty or have 3 numbers"),
    ({"metric.kind": "n_pair"}, r"config.metric.kind .*\(did you mean 'npair'\?\)"),
    ({"metric.temperature": 0.0}, "config.metric.temperature is 0.0, but must be a number above 0"),
    ({"metric.ramp": 10.0}, "config.metric.ramp is 10.0, but must lie in 0..1"),
    ({"metric.kind": "pairwise", "tasks": ("rotation",)}, "must be at least 2 tasks for the 'pairwise' regulariser"),
    (
        {"metric.kind": "pairwise", "tte.mode": "task_snapshot"},
        "config.metric.kind is 'pairwise', but must have an anchor",
    ),
    ({"tte.mode": "ema"}, r"config.tte.mode is 'ema', but must be one of 'param_ema'"),
    ({"tte.alpha": 1.0}, "config.tte.alpha is 1.0, but must lie between 0 and 1"),
    (
        {"tte.mode": "task_snapshot", "gradient.kind": "pcgrad"},
        "config.gradient.kind is 'pcgrad', but must not be this",
    ),
    ({"tte.mode": "task_snapshot", "weighting.kind": "uncertainty"}, "config.weighting.kind is 'uncertainty'"),
    ({"encoder.name": "resnet"}, r"config.encoder.name .*\(did you mean 'resnet"),
    ({"encoder.name": "resnet18", "image_size": 20}, "config.image_size is 20, but must be a multiple of 8"),
    ({"decoder.channels": (8,)}, "config.decoder.channels .* must have at least 2 numbers"),
    ({"channels": 1}, "config.channels is 1, but must be 3"),
    ({"mean": (0.5,)}, r"config.mean is \(0.5,\), but must be empty \(measured\) or have 3 numbers"),
    ({"augment.padding": 16}, "config.augment.padding is 16"),
    ({"batch_size": 1}, "config.batch_size is 1, but must be at least 2"),
    ({"transfer.source": "student"}, "config.transfer.source is 'student'"),
    ({"tasks": ("supervised",), "unlabelled_split": "unlabelled"}, "config.unlabelled_split .* needs a label for each"),
    ({"detection.stride": 3}, "config.detection.stride is 3"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=lambda value: str(value)[:60])
def test_config_that_cannot_work(fields, message):
    with pytest.raises(UserError, match=message) as caught:
        experiment.phases(cli.config(**fields))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


@pytest.mark.parametrize("variant", ["", "smoke", "cifar10", "cifar100", "stl10"])
def test_variants_are_fine(variant):
    names = [phase.name for phase in experiment.phases(cli.config(variant))]
    assert names == ["pretrain", "classification", "clustering", "detection"]


def test_more_clusters_or_larger_batches_than_images():
    for field in ("clustering_task.num_clusters", "batch_size"):
        with pytest.raises(UserError, match=rf"config.{field} is 65, but must be at most 64, the training images"):
            experiment.build(cli.config(**{field: 65}), {})


@pytest.mark.parametrize("variant", ["cifar10", "stl10"])
def test_missing_data(variant, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=f"data set '{variant}' was not found .*--config.dataset=glyphs"):
        experiment.build(cli.config(variant), {})


def test_command_line(tmp_path):
    out, error = cli.run(*cli.flags(tmp_path / "run", **{"metric.kind": "n-pair"}), code=2)
    assert "Traceback" not in out + error
    assert re.match("Error: config.metric.kind is 'n-pair', but must be one of", error)
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
