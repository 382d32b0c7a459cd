"""What a user can get wrong: one sentence that names it, exit code 2, no traceback, and nothing is lost."""

import importlib
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from common.experiment import TrainState
from fewshot import experiment, report
from fewshot.train import EpisodeOutput
from tests.common.toys import running
from tests.fewshot import cli


def refused(message, name="cxgrad", **fields):
    """Building the experiment of these fields fails with this sentence."""
    with pytest.raises(UserError, match=message) as caught:
        experiment.build(cli.config(name, **fields), {})
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": 0}, "config.num_steps is 0, but must be a number above 0"),
        ({"inner_steps": -1}, "config.inner_steps is -1"),
        ({"tasks_per_step": 0}, "config.tasks_per_step is 0"),
        ({"inner_learning_rate": float("nan")}, "config.inner_learning_rate is nan"),
        ({"eval_episodes": 1}, "config.eval_episodes is 1, but must be at least 2 for an interval"),
        ({"test_episodes": 1}, "config.test_episodes is 1, but must be at least 2"),
        ({"first_order_steps": -3}, "config.first_order_steps is -3, but must not be negative"),
        ({"multi_step_loss_epochs": -1}, "config.multi_step_loss_epochs is -1"),
        ({"model_seed": 2**32}, "config.model_seed is 4294967296"),
        ({"method": "mamml"}, r"config.method is 'mamml', but must be one of .*\(did you mean 'maml'\?\)"),
        ({"adapted": "body"}, "config.adapted is 'body', but must be one of 'all', 'head', 'backbone'"),
        ({"adapted": "head"}, "config.adapted is 'head', but CxGrad scales convolution layers"),
        ({"sampler": "devise"}, r"config.sampler .*\(did you mean 'device'\?\)"),
        ({"images_on": "gpu"}, "config.images_on is 'gpu', but must be one of 'auto', 'device', 'host'"),
        ({"network": "resnet18"}, r"config.network is 'resnet18', but must be one of 'conv4', 'resnet12'"),
        ({"network": "resnet12", "norm": "layer"}, "config.norm is 'layer', but must be 'batch' with config.network"),
        ({"network": "resnet12", "pooling": False}, "config.pooling is False, but must be True with config.network"),
        ({"network": "resnet12", "image_size": 7}, "image_size is 7, but must be at least 8 for three halvings"),
        ({"remat": "yes"}, "config.remat is 'yes', but must be one of 'auto', 'on', 'off'"),
        ({"eval_analysis_episodes": 1}, "config.eval_analysis_episodes is 1, but must be at least 2"),
        ({"convolution": "fft"}, "config.convolution is 'fft', but must be one of 'auto', 'native', 'patches'"),
        ({"best_metric": "acuracy"}, r"config.best_metric is 'acuracy'.*\(did you mean 'accuracy'\?\)"),
        ({"norm": "layer", "per_step_norm": True}, "config.norm is 'layer', but must be 'batch' with"),
        ({"image_size": 15}, "config.image_size is 15, but must be at least 16 for four halvings"),
        ({"image_size": 8, "pooling": False}, "image_size .* 8"),
        ({"channels": 2}, "channels must be 1 .* or 3"),
        ({"optimizer.name": "adamm"}, r"name is 'adamm', but must be one of .*\(did you mean 'adam'\?\)"),
        ({"optimizer.learning_rate": 0.0}, "learning_rate is 0.0, but must be a number above 0"),
        ({"optimizer.name": "sgd"}, "momentum is missing"),
    ],
)
def test_value_that_no_field_can_have(fields, message):
    refused(message, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"transduction": "tapel"}, r"config.transduction is 'tapel', but must be .*\(did you mean 'tapl'\?\)"),
        ({"propagation.neighbours": 20}, r"config.propagation.neighbours is 20, but must lie in 0\.\.19, the other"),
        ({"propagation.neighbours": -1}, "config.propagation.neighbours is -1"),
        ({"propagation.alpha": 1.0}, "config.propagation.alpha is 1.0, but must be at least 0 and below 1"),
        ({"propagation.alpha": -0.1}, "config.propagation.alpha is -0.1"),
        ({"propagation.sigma": "scaler"}, r"config.propagation.sigma .*\(did you mean 'scalar'\?\)"),
        ({"propagation.initial_sigma": 0.0}, "config.propagation.initial_sigma is 0.0, but must be a number above 0"),
        ({"tapl.gradient": "soft"}, "config.tapl.gradient is 'soft', but must be one of 'soft_outer', 'soft_constant'"),
        ({"tapl.pseudo_labels": "last_step"}, "config.tapl.pseudo_labels is 'last_step'"),
        ({"tapl.mean": "double"}, "config.tapl.mean is 'double'"),
        ({"tapl.query_weight": -1.0}, "config.tapl.query_weight is -1.0, but must be a finite number that is not"),
        ({"tapl.query_weight": float("nan")}, "config.tapl.query_weight is nan"),
        ({"tapl.confidence_threshold": 1.0}, "config.tapl.confidence_threshold is 1.0, but must be at least 0 and"),
        (
            {"tapl.adapt_sigma": True, "tapl.gradient": "hard"},
            "config.tapl.gradient is 'hard', but must be 'soft_outer'",
        ),
        ({"tapl.adapt_sigma": True, "propagation.sigma": "fixed"}, "config.propagation.sigma .* must be 'scalar' with"),
        ({"tapl.adapt_sigma": True, "tapl.pseudo_labels": "first_step"}, "must be 'every_step' with config.tapl.adapt"),
        ({"task_loop": "vmap"}, "config.task_loop is 'vmap', but must be 'auto' or 'map' on CPUs"),
        ({"batch_norm": "support_stats"}, "config.batch_norm is 'support_stats', but must be 'batch' with"),
        ({"transduction": "propagation", "method": "cxgrad"}, "config.method is 'cxgrad', .* which has no inner loop"),
        (
            {"transduction": "propagation", "per_step_norm": True},
            "config.per_step_norm is True, but must be False with",
        ),
    ],
)
def test_transduction_that_cannot_be(fields, message):
    refused(message, "tapl", **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "glyph"}, "unknown data set 'glyph'.*'glyphs'"),
        ({"dataset": "digits"}, "'digits' cannot be used for fewshot"),
        ({"dataset_path": "/somewhere"}, "'glyphs' is rendered, not read: leave dataset_path empty"),
        ({"glyphs.difficulty": "harder"}, "'difficulty' .* must be one of easy, medium, hard"),
        ({"ways": 1}, "config.ways is 1, but must be at least 2"),
        ({"ways": 2000}, "config.ways is 2000, but split 'train' has 857 classes"),
        ({"ways": 150}, "config.ways is 150, but split 'validation' has 143 classes"),
        ({"shots": 18}, r"class .* of split 'train' has 20 images, but config.shots \+ config.queries = 18 \+ 3 = 21"),
    ],
)
def test_data_that_do_not_fit(fields, message):
    refused(message, **fields)


@pytest.mark.parametrize("name", ["cxgrad", "maml", "maml_pp", "tapl"])
def test_published_variants_say_which_data_are_missing(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    module = importlib.import_module(f"fewshot.configs.{name}")
    for variant in sorted(name for name in module.VARIANTS if not name.startswith("smoke")):
        config = module.get_config(variant)
        with pytest.raises(UserError, match=f"data set {config.dataset!r} was not found .*--config.dataset=glyphs"):
            experiment.build(config, {})


# --- the user's own pictures ----------------------------------------------------------------------------------------


def write_pictures(root, classes=15, per_class=4):
    random = np.random.default_rng(0)
    for label in range(classes):
        (root / f"class{label:02d}").mkdir(parents=True)
        for index in range(per_class):
            pixels = random.integers(0, 256, (20, 18, 3), np.uint8)
            Image.fromarray(pixels).save(root / f"class{label:02d}" / f"{index}.png")


def test_own_pictures_are_read(tmp_path):
    write_pictures(tmp_path)
    built = experiment.build(cli.config("cxgrad", dataset="folder", dataset_path=str(tmp_path)), {})
    assert built.data["train"].shape == (20, 16, 16, 1)
    assert built.data["episodes"].shape == (12, 5, 4)


def test_own_pictures_that_are_not_there(tmp_path):
    refused("needs the folder of your pictures: set --config.dataset_path=", dataset="folder")
    refused("/nowhere .*does not exist", dataset="folder", dataset_path="/nowhere")
    refused("0 class folders, but at least 2", dataset="folder", dataset_path=str(tmp_path))
    write_pictures(tmp_path / "few", classes=14)
    refused("holds 14 classes, but .* need 15: .*fewer ways", dataset="folder", dataset_path=str(tmp_path / "few"))
    write_pictures(tmp_path / "short", per_class=3)
    refused("class00 holds 3 pictures .* at least 4", dataset="folder", dataset_path=str(tmp_path / "short"))


def test_own_pictures_that_are_there_twice(tmp_path):
    write_pictures(tmp_path)
    shutil.copy(tmp_path / "class03" / "1.png", tmp_path / "class09" / "copy.png")
    message = r"class03/1.png and .*class09/copy.png|class09/copy.png and .*class03/1.png"
    refused(message, dataset="folder", dataset_path=str(tmp_path))


def test_picture_that_cannot_be_read(tmp_path):
    write_pictures(tmp_path)
    broken = tmp_path / "class07" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    refused(rf"picture {re.escape(str(broken))} cannot be read", dataset="folder", dataset_path=str(tmp_path))


# --- from the command line ------------------------------------------------------------------------------------------


def error_of(name, folder, *flags, devices=1, **fields):
    """The one sentence on standard error of a command that must fail with exit code 2."""
    out, error = cli.run(name, folder, *flags, devices=devices, code=2, **fields)
    assert "Traceback" not in out + error
    assert error.count("\n") == 1
    return error


def test_unknown_variant(tmp_path):
    file = "fewshot/configs/cxgrad.py:smok"
    process = cli.start("cxgrad", tmp_path / "run", f"--config={file}")
    _, error = running.finish(process, 2)
    assert re.fullmatch(r".*variant 'smok' does not exist \(did you mean 'smoke'\?\); known variants: .*\n", error)


def test_missing_data_from_the_command_line(tmp_path):
    error = error_of("cxgrad", tmp_path / "run", dataset="mini_imagenet")
    assert re.match("Error: data set 'mini_imagenet' was not found .* run now with the embedded", error)


def test_tasks_that_do_not_divide_over_the_devices(tmp_path):
    error = error_of("maml", tmp_path / "run", devices=8, tasks_per_step=12)
    assert "config.tasks_per_step gives a global batch of 12, which does not divide over 8 devices" in error


def test_workdir_of_another_config(finished):
    before = {file: file.stat().st_mtime_ns for file in finished.folder.rglob("*")}
    for flags in ((), ("--mode=eval",)):
        error = error_of("cxgrad", finished.folder, *flags, **finished.fields | {"inner_steps": 3})
        assert "has another config (inner_steps: 2 -> 3); choose another --workdir" in error
    assert before == {file: file.stat().st_mtime_ns for file in finished.folder.rglob("*")}


@pytest.mark.parametrize("field", ["resume_from", "init_from"])
def test_nowhere_to_start_from(field, tmp_path):
    config = cli.config("maml", **{field: str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match=f"config.{field} is .*nowhere.*give the work directory of a run"):
        cli.train(config, tmp_path / "run")


# --- damage ---------------------------------------------------------------------------------------------------------


def stub_test(state, data):
    """Stands for the test episodes, whose program takes long to compile."""
    return EpisodeOutput(jnp.zeros((6, 15, 5)), jnp.zeros(6), {}, {})


def test_damaged_checkpoint_of_the_ensemble(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    config = cli.config("cxgrad", **finished.fields)
    state = TrainState(0, {}, {}, {})
    best = running.best(folder)
    for file in (folder / "checkpoints" / str(best[1])).rglob("*"):
        if file.is_file() and file.name not in {"metrics", "_CHECKPOINT_METADATA"}:
            file.write_bytes(b"damaged")
    with pytest.raises(UserError, match=rf"The checkpoint .*{best[1]} cannot be read .*; copy a good one there"):
        report.finish(state, {}, folder, stub_test, config)
    assert (folder / "results.json").read_bytes() == (finished.folder / "results.json").read_bytes()
