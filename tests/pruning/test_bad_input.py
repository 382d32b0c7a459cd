"""What a user can get wrong: one sentence that names it."""

import numpy as np
import pytest

from common.errors import UserError
from pruning import experiment, official_weights, setup
from pruning.check import check_config
from pruning.models.cifar_resnet import cifar_resnet
from tests.pruning import cli, networks


def test_smoke_variant_is_fine():
    check_config(cli.config())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.architecture": "resnet57"}, r"config.model.architecture is 'resnet57'.*did you mean 'resnet5"),
        ({"search.target": 1.0}, "config.search.target is 1.0, but must lie between 0 and 1"),
        ({"search.target": 0.0}, "config.search.target is 0.0"),
        ({"search.step": 0.0}, "config.search.step is 0.0"),
        ({"search.method": "gready"}, r"config.search.method is 'gready'.*did you mean 'greedy'"),
        ({"search.criterion": "l2"}, "config.search.criterion is 'l2', but must be one of 'taylor', 'l1'"),
        ({"search.marking": "none"}, "config.search.marking is 'none', but must be one of 'scores', 'release', 'all'"),
        ({"search.rates": "float"}, "config.search.rates is 'float'"),
        ({"search.normalise": "batch"}, "config.search.normalise is 'batch'"),
        ({"search.evaluation": "vmap"}, "config.search.evaluation is 'vmap', but must be one of 'automatic'"),
        ({"search.images_per_class": 0}, "config.search.images_per_class is 0"),
        ({"search_teacher": "ensembel"}, r"config.search_teacher is 'ensembel'.*did you mean 'ensemble'"),
        ({"finetune_teacher": "bank"}, "config.finetune_teacher is 'bank'"),
        ({"finetune.teacher_filter": "kl"}, "config.finetune.teacher_filter is 'kl'"),
        ({"finetune.temperature": 0.0}, "config.finetune.temperature is 0.0, but must be a number above 0"),
        ({"finetune.decay_at": (0.6, 0.3)}, r"config.finetune.decay_at is \(0.6, 0.3\), but must hold shares"),
        ({"bank.teachers": 0}, "config.bank.teachers is 0"),
        ({"bank.dtype": "int8"}, "config.bank.dtype is 'int8', but must be one of 'float32', 'float16'"),
        ({"slim.round_to": 0}, "config.slim.round_to is 0"),
        ({"prepare.epochs": -1}, "config.prepare.epochs is -1"),
        ({"augmentation.draws": "epoch"}, "config.augmentation.draws is 'epoch'"),
        ({"augmentation.flip": 1.5}, "config.augmentation.flip is 1.5"),
        ({"augmentation.crop_padding": 16}, "config.augmentation.crop_padding is 16, but must lie between 0 and 15"),
        ({"mean": (0.5,)}, r"config.mean is \(0.5,\), but must be empty \(measured\) or have 3 numbers"),
        ({"init_from": "runs/other"}, "config.init_from is 'runs/other', but must be empty: .* give config.dense"),
    ],
)
def test_value_that_cannot_work(fields, message):
    with pytest.raises(UserError, match=message) as caught:
        check_config(cli.config(**fields))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"search.target": 0.001},
            "config.search.target is 0.001, but with one channel in every gate the network",
        ),
        ({"train.batch_size": 65}, "config.train.batch_size is 65, but must be at most 64, the images of an epoch"),
        ({"prepare.batch_size": 64}, "config.prepare.batch_size is 64, but must be at most 32"),
    ],
)
def test_value_that_does_not_fit_the_data(fields, message):
    with pytest.raises(UserError, match=message):
        experiment.phases(cli.config(**fields))


@pytest.fixture
def file(tmp_path):
    """An official file of ResNet-8 with weights from a formula."""
    graph = cifar_resnet(8, 4)
    params, stats = networks.variables(graph, 16)
    return write(tmp_path / "weights.npz", graph, params, stats)


def write(path, graph, params, stats):
    tensors = {"fc/kernel": params["fc"]["kernel"], "fc/biases": params["fc"]["bias"]}
    for placed in graph.layers:
        block, norm = placed.norm_path
        prefix = norm if block == "stem" else f"{block}/{norm}"
        tensors[f"{placed.name}/kernel"] = params[block][placed.layer.name]["kernel"]
        tensors |= {f"{prefix}/gamma": params[block][norm]["scale"], f"{prefix}/beta": params[block][norm]["bias"]}
        tensors |= {f"{prefix}/moving_mean": stats[block][norm]["mean"]}
        tensors |= {f"{prefix}/moving_variance": stats[block][norm]["var"]}
    np.savez(path, **{name: np.asarray(array) for name, array in tensors.items()})
    return path


def test_official_file_is_read(file):
    config = cli.config(dense=str(file))
    graph = cifar_resnet(8, 4)
    params, stats = networks.variables(graph, 16)
    found = setup.dense_variables(config, graph, {})
    np.testing.assert_array_equal(found["params"]["stem"]["conv"]["kernel"], params["stem"]["conv"]["kernel"])
    ours, theirs = (tree["BasicBlock1.0"]["bn3"]["var"] for tree in (found["batch_stats"], stats))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (cifar_resnet(14, 4), "weights.npz has no tensor BasicBlock0.1/conv1/kernel: it is another architecture"),
        (cifar_resnet(8, 5), r"fc/kernel is \[64, 4\], but the network has \[64, 5\]"),
    ],
)
def test_checkpoint_of_another_architecture(file, graph, message):
    with pytest.raises(UserError, match=message):
        official_weights.read(file, graph)


def test_checkpoint_with_more_than_the_network(tmp_path):
    graph = cifar_resnet(14, 4)
    path = write(tmp_path / "more.npz", graph, *networks.variables(graph, 16))
    with pytest.raises(UserError, match=r"more.npz has a tensor BasicBlock0.1/bn1/beta that the network lacks"):
        official_weights.read(path, cifar_resnet(8, 4))


def test_damaged_checkpoint(tmp_path):
    path = tmp_path / "weights.npz"
    path.write_bytes(b"PK nonsense")
    with pytest.raises(UserError, match=r"weights.npz cannot be read as an .npz file of weights"):
        official_weights.read(path, cifar_resnet(8, 4))


def test_dense_network_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"config.dense is .*nowhere', but must be empty \(train it here\), the work"):
        setup.dense_variables(cli.config(dense=str(tmp_path / "nowhere")), cifar_resnet(8, 4), {})


@pytest.mark.parametrize("variant", ["cifar10", "cifar100"])
def test_published_variants_say_which_data_are_missing(variant, tmp_path, monkeypatch):
    from pruning.configs import ekg

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    config = ekg.get_config(variant)
    with pytest.raises(UserError, match=f"data set {config.dataset!r} was not found .*--config.dataset=glyphs"):
        experiment.phases(config)


def test_imagenet_variants_want_a_folder():
    from pruning.configs import ekg

    with pytest.raises(UserError, match="dataset_path"):
        experiment.phases(ekg.get_config("imagenet_resnet50"))
