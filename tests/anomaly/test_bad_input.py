"""What a user can get wrong: one sentence that names it, exit code 2, no traceback."""

import re
import shutil
import sys

import numpy as np
import pytest

from anomaly import experiment, export, inference, predict, summary, table
from anomaly.configs import cfa
from common.errors import UserError
from common.pretrained import save_safetensors
from tests.anomaly import cli
from tests.common.data.anomaly import trees
from tests.common.toys import running


def build(config):
    (phase,) = experiment.phases(config)
    return phase.build(config, {})


def refused(message, variant="smoke", **fields):
    """Building the experiment of these fields fails with this sentence."""
    config = cli.config(variant, **fields)
    with pytest.raises(UserError, match=message) as caught:
        build(config)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "config.batch_size is 0, but must be a number above 0"),
        ({"gamma_c": -1}, "config.gamma_c is -1"),
        ({"gamma_c": 16}, r"config.gamma_c is 16, but must leave at least neighbours \+ repelled = 6 entries, not 4"),
        ({"gamma_d": 1000}, "config.gamma_d is 1000, but must be at most 448"),
        ({"initial_radius": 0.0}, "config.initial_radius is 0.0, but must be a number above 0"),
        ({"nu": float("nan")}, "config.nu is nan"),
        ({"num_epochs": -1}, "config.num_epochs is -1, but must not be negative"),
        ({"num_epochs": 0}, "config.num_steps is 0, but must be above 0 where config.num_epochs is 0"),
        ({"ema_coefficient": 2.0}, r"config.ema_coefficient is 2.0, but must lie in 0..1"),
        ({"crop": (8, 32)}, r"config.crop is \(8, 32\), but must be \(height, width\), whole numbers of at least 16"),
        (
            {"crop": ("a", 32)},
            r"config.crop is \('a', 32\), but must be \(height, width\), whole numbers of at least 16",
        ),
        ({"crop": (32.5, 32)}, r"config.crop is \(32.5, 32\), but must be \(height, width\), whole numbers"),
        ({"crop": (16, 16), "backbone": "vgg19_bn"}, "config.crop is .*, but must be at least 32 on each side for vgg"),
        ({"resize": 24}, "config.resize is 24, but must be at least the shorter side of config.crop, 32, or 0"),
        (
            {"resize": 0, "rotate_and_crop": True},
            "config.resize is 0, but must be at least the longer side .*, 32, where",
        ),
        (
            {"resize": 40, "crop": (32, 64), "rotate_and_crop": True},
            "config.resize is 40, but must be at least .*, 64, ",
        ),
        ({"dataset": "texture"}, r"config.dataset is 'texture', but must be one of .*\(did you mean 'textures'\?\)"),
        ({"category": "bricks"}, r"no category 'bricks' \(did you mean 'brick'\?\)"),
        ({"backbone": "resnet81"}, r"config.backbone is 'resnet81', but .*\(did you mean 'resnet18'\?\)"),
        ({"bank": "mean"}, "config.bank is 'mean', but must be one of 'running_mean', 'nearest_ema'"),
        ({"threshold": "f2"}, "config.threshold is 'f2', but must be one of 'f1', 'normal_max', 'normal_quantile'"),
        ({"tap_activation": "elu"}, "tap_activation is 'elu', but must be one of leaky_relu, relu"),
        ({"weights": "resnet18"}, "weights are 'resnet18', but must be one of resnet18:tv_in1k, the path of a file"),
        ({"weights": "nowhere/w.pth"}, "weights file nowhere/w.pth does not exist"),
        ({"weights": "wide_resnet50_2:tv_in1k"}, "are not of resnet18, which has: resnet18:tv_in1k"),
        ({"optimizer.name": "amsgrad"}, "the optimizer's name is 'amsgrad', but must be one of"),
        ({"seed": -1}, "seed is -1"),
        ({"throughput_batch_sizes": (1, 0)}, r"config.throughput_batch_sizes is \(1, 0\), but must hold whole numbers"),
        (
            {"grid.gamma_c": (1, 16)},
            r"config.gamma_c is 16, but must leave at least neighbours \+ repelled = 6 entries",
        ),
        ({"grid.gamma_d": (4, 4)}, r"config.grid.gamma_d is \(4, 4\), but must not hold a number twice"),
    ],
)
def test_values_that_no_field_can_have(fields, message):
    refused(message, **fields)


@pytest.mark.parametrize("variant", sorted(cfa.VARIANTS.keys() - {"smoke", "folder", "gravel", "grass"}))
def test_published_variants_say_which_data_are_missing(variant):
    refused("MVTec AD was not found .*--config.dataset=textures", variant)


def test_weights_of_another_network(tmp_path):
    file = tmp_path / "other.safetensors"
    save_safetensors(file, {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32), "extra": np.zeros(3, np.float32)})
    refused(f"{re.escape(str(file))} for backbone resnet18 does not fit the network .*missing: ", weights=str(file))
    file.write_bytes(b"not weights")
    refused(f"{re.escape(str(file))} is no weights file", weights=str(file))


def test_own_images(tmp_path):
    refused("data set 'folder' needs the folder of your images: set --config.dataset_path", "folder")
    own = {"dataset": "folder", "dataset_path": str(tmp_path), "category": ""}
    refused("brick does not exist; .*; --config.category= if there is only one", **own | {"category": "brick"})
    refused("no good images to learn from", **own)
    trees.mvtec_tree(tmp_path)
    (phase,) = experiment.phases(cli.config(**own))
    assert phase.overrides["num_steps"] == 5  # 6 epochs of 6 images, 8 a step
    refused("must be one category, since 'folder' has no list", **own | {"category": "all"})
    (tmp_path / "ground_truth" / "dent" / "000_mask.png").unlink()
    refused("the mask .*dent/000_mask.png of .* is missing", **own)


def test_run_that_cannot_score(finished, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        inference.load_model(tmp_path)
    shutil.copytree(finished[0], tmp_path / "all" / "brick")
    with pytest.raises(UserError, match="it holds runs of brick: choose one"):
        inference.load_model(tmp_path / "all")
    shutil.copy(finished[0] / "config.json", tmp_path / "all")
    with pytest.raises(UserError, match=r"all is a run of several: choose one, such as .*all/brick"):
        inference.load_model(tmp_path / "all")
    file = tmp_path / "all" / "brick" / "calibration.json"
    file.write_text('{"low": 1}')
    with pytest.raises(UserError, match=r"calibration.json is damaged .*--mode=eval to renew it"):
        inference.load_model(tmp_path / "all" / "brick")
    file.unlink()
    with pytest.raises(UserError, match="has not ended; finish it with its own command first"):
        inference.load_model(tmp_path / "all" / "brick")
    with pytest.raises(UserError, match="is no exported program"):
        export.load(finished[0] / "config.json")


def test_pictures_that_cannot_be_scored(finished, tmp_path):
    with pytest.raises(UserError, match="--images=nowhere does not exist"):
        predict.find(["nowhere"])
    with pytest.raises(UserError, match="holds no pictures"):
        predict.find([str(tmp_path)])
    trees.write(tmp_path / "a.png")
    trees.write(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"two pictures would have the heat map a_heatmap.png"):
        predict.find([str(tmp_path)])
    model = inference.load_model(finished[0])
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(UserError, match=r"a.jpg cannot be read .*: replace or remove it"):
        predict.predict(model, predict.find([str(tmp_path / "a.jpg")]), tmp_path, 1)
    with pytest.raises(UserError, match="--height=10 --width=10 is smaller than the run's crop"):
        export.write(model._replace(frame=type(model.frame)(0, (32, 32))), 10, 10, tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        ("predict", ["--workdir=x"], r"--images is missing; for example: python -m anomaly.predict"),
        pytest.param("export", [], r"give --workdir=RUN and --out=FILE.npz", marks=pytest.mark.slow),
        pytest.param("table", ["--run=x"], r"--run is no flag .* \(did you mean '--runs'\?\)", marks=pytest.mark.slow),
    ],
)
def test_tools_answer_in_one_sentence(module, flags, message):
    process = running.open_process([sys.executable, "-m", f"anomaly.{module}", *flags])
    out, error = running.finish(process, 2)
    assert "Traceback" not in out + error
    assert re.search(message, error)
    assert error.count("\n") == 1


def test_better_of_two_runs_is_taken_per_category_and_metric(tmp_path):
    first = {"bottle": {"image_auroc": 0.9, "pixel_auroc": 0.8}, "tile": {"image_auroc": 0.5, "pixel_auroc": 0.6}}
    second = {"bottle": {"image_auroc": 0.7, "pixel_auroc": 0.85}, "tile": {"image_auroc": 0.6}}
    for run in (first, second):
        run["tile"] |= {"bank_mib": 7.0, "images_per_s_batch_1": 3.0}  # of one run, not of the better of two
    best = table.best_of_runs([first, second])
    assert best == {"bottle": {"image_auroc": 0.9, "pixel_auroc": 0.85}, "tile": {"image_auroc": 0.6}}
    names, rows = summary.categories(best)
    assert names == ["image_auroc", "pixel_auroc"]
    assert [row[0] for row in rows] == ["bottle", "tile", "mean of textures", "mean of objects", "mean"]
    assert rows[-1][1] == 0.75
