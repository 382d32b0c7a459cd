"""The published networks with formula weights, output by output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import pretrained
from common.errors import UserError
from common.models.alexnet import AlexNet, adaptive_average_pool
from common.models.resnet import ResNet
from fer import train, weights
from fer.configs import elim
from fer.experiment import make_network, make_recipe
from fer.mixer import Mixer
from fer.models import Header, LatentRegressor
from tests.fer import cli, official

TOLERANCE = 1e-4


def formula_variables(module, prefix, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return {
        kind: official.load(tree, lambda name, shape: official.formula(f"shared/{prefix}.{name}", shape))
        for kind, tree in shapes.items()
    }


def image(name, *shape):
    random = official.noise(f"shared/{name}", shape)
    return jnp.asarray(random.transpose(0, 2, 3, 1), jnp.float32)


def check(value, name):
    assert official.relative(value, official.golden("networks")[name]) < TOLERANCE, name


def apply(module, prefix, x):
    return official.jit(module.apply)(formula_variables(module, prefix, x), x)


def test_alexnet_with_its_header():
    features = apply(AlexNet(), "alexnet", image("image", 2, 3, 224, 224))
    check(features, "alexnet_encoder")
    latent = apply(LatentRegressor(512), "regressor_al", features)
    check(latent, "alexnet_latent")
    check(apply(Header(10240, 2), "header", latent), "header_eval")


def test_header_in_training():
    latent = jnp.asarray(official.noise("shared/latent", (6, 512)), jnp.float32)
    header = Header(10240, 2)
    variables = formula_variables(header, "header", latent)
    scores, after = official.jit(lambda v, x: header.apply(v, x, True, mutable=["batch_stats"]))(variables, latent)
    check(scores, "header_train")
    check(after["batch_stats"]["bn1"]["mean"], "header_running_mean")
    check(after["batch_stats"]["bn1"]["var"], "header_running_var")


@pytest.mark.slow
def test_resnet18():
    logits = apply(ResNet(("logits",)), "resnet18", image("image", 2, 3, 224, 224))["logits"]
    check(logits, "resnet18_encoder")
    regressor = LatentRegressor(512, (512, 256), ("bn1", "bn2"))
    check(apply(regressor, "regressor_r18", logits), "resnet18_latent")


def test_mixer():
    mixer = Mixer(24, 32, 2, 16, 64, 8, latent_bias=False, head_outputs=2)
    latent, logits = apply(mixer, "mixer", image("mixer_image", 3, 3, 32, 32))
    check(latent, "mixer_latent")
    check(logits, "mixer_logits")


def test_adaptive_pooling_of_overlapping_bins():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    pooled = adaptive_average_pool(x, 6)
    rows = [(0, 1), (0, 2), (1, 2), (2, 3), (2, 4), (3, 4)]
    expected = [[np.mean(np.asarray(x)[0, a:b, c:d, 0]) for c, d in rows] for a, b in rows]
    np.testing.assert_allclose(pooled[0, :, :, 0], expected, rtol=1e-6)
    same = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    np.testing.assert_allclose(adaptive_average_pool(same, 6), same, rtol=1e-6)


# Numbers of encoder, regressor and header, from the layers' sizes as the spec lists them.
ALEXNET = 2_469_696 + (9216 * 256 + 256 + 256 * 512 + 512 + 2 * 512)
RESNET = 11_689_512 + (1000 * 512 + 512 + 512 * 256 + 256 + 512 + 256 * 512 + 512 + 1024)
HEADER = 512 * 10240 + 10240 + 2 * 10240 + 10240 * 2 + 2


@pytest.mark.parametrize(
    ("variant", "expected"),
    [("aff_wild2_alexnet", ALEXNET + HEADER), ("aff_wild2_resnet18", RESNET + HEADER)],
)
def test_networks_have_the_published_size(variant, expected):
    network = make_network(elim.get_config(variant))
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == expected


def test_mixer_b16_has_the_official_size():
    network = make_network(elim.get_config("aff_wild2_mixer"))
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    tokens, width = 196, 768
    token = tokens * 384 + 384 + 384 * tokens + tokens
    channel = width * 3072 + 3072 + 3072 * width + width
    mixer = 16 * 16 * 3 * width + width + 12 * (token + channel + 4 * width) + 2 * width + width * 512
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == mixer + HEADER
    assert "regressor" not in shapes["params"]


@pytest.mark.parametrize("backbone", ["alexnet", "resnet18"])
def test_published_weights_of_an_encoder(backbone, tmp_path):
    config = cli.config(
        **{"model.backbone": backbone, "image_size": 64, "encoder_weights": str(tmp_path / "a.safetensors")}
    )
    network = make_network(config)
    shapes = jax.eval_shape(network.encoder.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    kept = {}

    def read(name, shape):
        name = name.removeprefix("resnet.").replace("last_linear", "fc")
        kept[name] = np.ascontiguousarray(official.formula(name, shape), np.float32)
        return kept[name]

    expected = {kind: official.load(tree, read) for kind, tree in shapes.items()}
    more = {"classifier.1.weight": np.zeros((3, 3), np.float32)} if backbone == "alexnet" else {}
    pretrained.save_safetensors(tmp_path / "a.safetensors", kept | more)
    found = weights.encoder_weights(config, network)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    recipe = make_recipe(config, (0.5,) * 3, (0.5,) * 3)
    state = jax.eval_shape(
        lambda data, key: train.init(recipe, (64, 64, 3), data, key), {"encoder": found}, jax.random.key(0)
    )
    assert jax.tree.structure(state.params["encoder"]) == jax.tree.structure(found["params"])
    kept.popitem()
    pretrained.save_safetensors(tmp_path / "a.safetensors", kept)
    with pytest.raises(UserError, match=r"does not fit the network \(1 missing"):
        weights.encoder_weights(config, network)
