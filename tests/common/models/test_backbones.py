"""Backbones against the numbers of the official code, in values, names and parameter counts."""

import importlib.util
import itertools
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from common.errors import UserError
from common.models.backbones import BACKBONES, extract_taps, get_backbone, load_variables, variables_template
from common.models.efficientnet import B5, LITE0, EfficientNet, depthwise_shifted, timm_names
from common.models.resnet import ResNet
from common.models.vgg import VGG
from common.models.weights import find_weights
from common.pretrained import flatten_tree, match, read_weights, save_safetensors, torch_entries

GOLDEN = Path(__file__).parents[2] / "golden" / "anomaly"
COMPLETE = {
    "resnet18": ResNet(taps=("logits",)),
    "wide_resnet50_2": ResNet(taps=("logits",), blocks=(3, 4, 6, 3), bottleneck=True, width=2),
    "vgg19_bn": VGG(taps=("features52",)),
    "efficientnet_b5": EfficientNet(("logits",), B5, 48, 2048, True, 456),
    "efficientnet_lite0": EfficientNet(("logits",)),
}


def draw(prefix, name):
    return np.random.default_rng(zlib.crc32(f"{prefix}/{name}".encode()))


def formula(prefix, name, shape):
    """Weights by the rule of the golden files, in PyTorch's axes."""
    z = draw(prefix, name).standard_normal(shape)
    if len(shape) == 4:
        z = z * np.sqrt(2 / np.prod(shape[1:]))
    elif len(shape) == 2:
        z = z * np.sqrt(1 / shape[1])
    elif name.endswith("running_var"):
        z = np.exp(0.2 * z)
    elif name.endswith("weight"):
        z = 1 + 0.1 * z
    else:
        z = 0.1 * z
    return z.astype(np.float32)


def template(module):
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


def official_names(stages):
    """{timm's layer name: the official port's}."""
    layers = ["_expand_conv", "_depthwise_conv", "_se_reduce", "_se_expand", "_project_conv", "_bn0", "_bn1", "_bn2"]
    places = [f"_blocks.{i}.{layer}" for i in range(sum(stage.repeats for stage in stages)) for layer in layers]
    names = [*places, "_conv_stem", "_bn0", "_conv_head", "_bn1", "_fc"]
    weights = {f"{name}.weight": np.array(i) for i, name in enumerate(names)}
    # Blocks without expansion lack two layers, whose names would fall on others.
    first = [f"_blocks.{i}." for i in range(stages[0].repeats)]
    weights = {k: v for k, v in weights.items() if not any(k.startswith((f + "_expand", f + "_bn0")) for f in first)}
    return {new.removesuffix(".weight"): names[int(array)] for new, array in timm_names(weights, stages).items()}


def formula_weights(prefix, module):
    """{official name: array} for every tensor of a module."""
    official = official_names(module.stages) if isinstance(module, EfficientNet) else {}
    weights = {}
    expected = template(module)
    shapes = {path: leaf.shape for path, leaf in flatten_tree(expected).items()}
    for entry in torch_entries(expected):
        layer, _, leaf = entry.source.rpartition(".")
        name, shape = f"{official.get(layer, layer)}.{leaf}", shapes[entry.target]
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[len(shape)]
        weights[name] = formula(prefix, name, tuple(shape[axis] for axis in axes))
    return weights


def check(golden, name, value, tolerance):
    """One NHWC array against the sampled NCHW values of the file."""
    value = np.moveaxis(np.asarray(value), -1, 1)
    assert tuple(golden[f"{name}/shape"]) == value.shape
    bound = tolerance * golden[f"{name}/value"].std()
    np.testing.assert_allclose(value.reshape(-1)[golden[f"{name}/flat_index"]], golden[f"{name}/value"], 0, bound)
    np.testing.assert_allclose(value.mean((0, 2, 3)), golden[f"{name}/channel_mean"], 0, bound)


def golden_input(golden, prefix):
    """[n, h, w, 3], already normalised."""
    x = draw(prefix, "input").standard_normal(tuple(golden["input_shape"])).astype(np.float32)
    if "input_first8" in golden:
        np.testing.assert_array_equal(x.reshape(-1)[:8], golden["input_first8"])
    return x.transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """name -> backbone with formula weights, which went through a file of the official names."""
    made = {}

    def load(name):
        if name not in made:
            backbone = get_backbone(name)
            path = tmp_path_factory.mktemp("weights") / "w.safetensors"
            weights = formula_weights(name, backbone.module)
            save_safetensors(path, weights)
            made[name] = backbone, load_variables(backbone, path), weights
        return made[name]

    return load


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50_2", "vgg19_bn", "efficientnet_b5"])
def test_taps_of_the_official_code(loaded, name):
    golden = dict(np.load(GOLDEN / f"backbone_{name}.npz"))
    backbone, variables, weights = loaded(name)
    for tensor, total in zip(golden["weight_check_names"], golden["weight_check"], strict=True):
        assert np.abs(weights[tensor].astype(np.float64)).sum() == pytest.approx(total, rel=1e-6)
    pixels = golden_input(golden, name) * np.float32(backbone.std) + np.float32(backbone.mean)
    taps = jax.jit(lambda variables, x: extract_taps(backbone, variables, x))(variables, jnp.asarray(pixels))
    for i, tap in enumerate(backbone.taps):
        check(golden, f"tap{i}", taps[tap], 5e-5)
        assert taps[tap].shape[-1] == backbone.channels[i]
        assert taps[tap].shape[1] == 64 // backbone.strides[i]
    assert len(backbone.taps) == len(taps)
