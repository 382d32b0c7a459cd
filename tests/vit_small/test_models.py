"""The five architectures against the official implementation: small ones in 64 bit with gradients, paper sizes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from common.errors import UserError
from tests.vit_small import official
from tests.vit_small.official import CASES, NAMES
from vit_small import cost
from vit_small.design import Design
from vit_small.models import T2T, ViT
from vit_small.official_names import entries, from_official, to_official, unused

# Plain, and with both ideas; one of them alone in the slow tests.
MIXED_CASES_SLOW = [pytest.param(*case, marks=[pytest.mark.slow] * (sum(case) == 1)) for case in CASES]
LABELS = jnp.array([0, 4, 2])


def loss_and_outputs(model, params, images):
    def loss(params):
        out = model.apply({"params": params}, images)
        targets = 0.9 * jax.nn.one_hot(LABELS, 5, dtype=images.dtype) + 0.1 / 5
        return optax.softmax_cross_entropy(out["logits"], targets).mean(), out

    return official.jit(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.mark.parametrize(("spt", "lsa"), MIXED_CASES_SLOW)
@pytest.mark.parametrize("name", NAMES)
def test_tiny_model(name, spt, lsa):
    arrays, prefix = official.golden("models_tiny"), f"{name}.spt{spt}.lsa{lsa}."
    model = official.with_taps(official.tiny(name, official.design(spt, lsa)))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), official.params(model, arrays, prefix))
    images = jnp.asarray(official.images("input/16", 3, 3, 16, 16), jnp.float32)
    (loss, out), gradient = loss_and_outputs(model, params, images)

    def close(ours, golden, atol=2e-5, rtol=1e-4):
        np.testing.assert_allclose(ours, arrays[prefix + golden], atol=atol, rtol=rtol, err_msg=golden)

    close(out["logits"], "logits", rtol=0)
    close(loss, "loss")
    close(out["features"], "features")
    # The official CaiT adds its positions in place, so that its recorded patch tokens have them already.
    patches = out["patches"] + params["position"][None] if name == "cait" else out["patches"]
    close(patches[0], "patch_tokens_sample0")
    sizes = [float(jnp.sqrt(jnp.mean(jnp.square(block["input"][0])))) for block in out["blocks"]]
    close(sizes, "block_input_rms_sample0")
    if prefix + "attention_probs" in arrays:
        close([block["attention"] for block in out["blocks"]], "attention_probs")

    official_gradient = to_official(model, gradient)
    names = [str(n) for n in arrays[prefix + "names"]]
    norms = [0.0 if n in unused(model) else np.linalg.norm(official_gradient[n]) for n in names]
    # Of the frozen positions the file has no gradient, of T2T's unused LayerNorm it is exactly 0.
    frozen = np.array([n == "pos_embed" for n in names])
    golden = np.where(frozen, 0.0, arrays[prefix + "grad_l2"])
    np.testing.assert_allclose(norms, golden, rtol=1e-3, atol=1e-5)
    for i, n in enumerate(arrays.get(prefix + "temperature_names", ())):
        close(official_gradient[str(n)], f"temperature_grad.{i}")


@pytest.mark.parametrize("name", NAMES)
def test_tiny_model_in_64_bit(name, float64):
    arrays, prefix = official.golden("models_tiny"), f"{name}.spt1.lsa1."
    model = official.tiny(name, official.design(1, 1))
    params = official.params(model, arrays, prefix)
    (loss, out), gradient = loss_and_outputs(model, params, jnp.asarray(official.images("input/16", 3, 3, 16, 16)))
    # The official T2T keeps its sinusoid in single precision.
    tolerance = 1e-7 if name == "t2t" else 1e-12
    np.testing.assert_allclose(out["logits"], arrays[prefix + "logits"], atol=tolerance)
    np.testing.assert_allclose(loss, arrays[prefix + "loss"], atol=tolerance)
    official_gradient = to_official(model, gradient)
    for n, norm in zip(arrays[prefix + "names"], arrays[prefix + "grad_l2"], strict=True):
        if str(n) not in unused(model):
            ours = np.linalg.norm(official_gradient[str(n)])
            np.testing.assert_allclose(ours, norm, rtol=10 * tolerance, atol=10 * tolerance, err_msg=str(n))


@pytest.mark.parametrize("name", NAMES)
def test_layers_written_out_and_fused_spt_are_the_same_model(name):
    arrays, prefix = official.golden("models_tiny"), f"{name}.spt1.lsa1."
    model = official.tiny(name, official.design(1, 1, scan=False, fused=True))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), official.params(model, arrays, prefix))
    out, _ = logits(model, jnp.asarray(official.images("input/16", 3, 3, 16, 16), jnp.float32), params)
    np.testing.assert_allclose(out, arrays[prefix + "logits"], atol=2e-5)


@pytest.mark.parametrize("side", [32, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("spt", "lsa"), MIXED_CASES_SLOW)
@pytest.mark.parametrize("name", NAMES)
def test_paper_size(name, spt, lsa, side):
    prefix = f"{name}.img{side}.spt{spt}.lsa{lsa}."
    tables, arrays = official.golden("models_paper_size_parameters"), official.golden("models_paper_size")
    model = official.paper(name, side, official.design(spt, lsa))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), official.params(model, tables, prefix, side))
    images = jnp.asarray(official.images(f"input/paper/{side}", 2, 3, side, side), jnp.float32)
    logits = official.jit(lambda params: model.apply({"params": params}, images)["logits"])(params)
    np.testing.assert_allclose(logits, arrays[prefix + "logits"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize(("spt", "lsa"), CASES)
@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_multiplications(name, spt, lsa, side):
    """By formula, and counted: all 40 parameter totals, all multiply-accumulates, and every tensor's shape."""
    prefix = f"{name}.img{side}.spt{spt}.lsa{lsa}."
    arrays, tables = official.golden("models_paper_size"), official.golden("models_paper_size_parameters")
    model = official.paper(name, side, official.design(spt, lsa))
    image = jnp.zeros((1, side, side, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]

    extra = unused(model)
    unused_norm = sum(array.size for n, array in extra.items() if n != "pos_embed")
    frozen = extra["pos_embed"].size if extra else 0
    assert cost.count_parameters(shapes) + unused_norm == arrays[prefix + "n_trainable"]
    assert cost.count_parameters(shapes) + unused_norm + frozen == arrays[prefix + "n_params"]
    assert cost.parameters(model, cost.Image(side)) == cost.count_parameters(shapes)

    counted = cost.count_macs(lambda params: model.apply({"params": params}, image)["logits"], shapes)
    assert counted == arrays[prefix + "matmul_macs"]
    assert cost.macs(model, cost.Image(side)) == counted

    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    ours = {n: array.shape for n, array in to_official(model, zeros).items()}
    assert ours == {n: shape for n, (shape, _, _) in official.table(tables, prefix).items()}


@pytest.mark.parametrize("name", NAMES)
def test_fresh_weights_are_spread_as_the_official_ones(name):
    prefix = f"{name}.img32.spt1.lsa1."
    tables = official.golden("models_paper_size_parameters")
    model = official.paper(name, 32, official.design(1, 1))
    params = official.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    ours = to_official(model, params)
    statistics = tables[prefix + "official_init_std_mean_absmax"]
    for (n, (_, kind, _)), (std, mean, _) in zip(official.table(tables, prefix).items(), statistics, strict=True):
        if ours[n].size > 5000 and kind not in ("frozen",):
            np.testing.assert_allclose(ours[n].std(), std, rtol=0.05, err_msg=n)
        if std == 0 or kind in ("norm_scale", "temperature", "layer_scale"):  # constants
            np.testing.assert_allclose(ours[n], np.full_like(ours[n], mean), rtol=1e-5, atol=1e-9, err_msg=n)


@pytest.mark.parametrize("name", NAMES)
def test_official_names_go_both_ways(name):
    arrays, prefix = official.golden("models_tiny"), f"{name}.spt0.lsa1."
    model = official.tiny(name, official.design(0, 1))
    weights = official.weights(arrays, prefix)
    back = to_official(model, from_official(model, weights, official.like(model, 16)))
    assert back.keys() == weights.keys()
    for entry in entries(model):
        np.testing.assert_array_equal(back[entry.official], weights[entry.official])


def test_weights_of_another_model():
    arrays = official.golden("models_tiny")
    weights = official.weights(arrays, "vit.spt0.lsa0.")

    def refused(name, design, message):
        model = official.tiny(name, design)
        with pytest.raises(UserError, match=message):
            from_official(model, weights, official.like(model, 16))

    refused("vit", official.design(0, 1), r"does not fit the network \(2 missing: transformer.layers.0.0.fn.scale")
    refused("swin", official.design(0, 0), "missing: absolute_pos_embed.* unexpected: pos_embedding")
    weights["cls_token"] = weights["cls_token"][:, :, :20]
    refused("vit", official.design(0, 0), r"wrong: cls_token has shape \[20\] instead of \[24\]")
    with pytest.raises(ValueError, match="Dense is none of ViT"):
        entries(nn.Dense(3))


# --- what the switches do -------------------------------------------------------------------------------------------


def logits(model, images=None, params=None, key=None):
    images = jnp.ones((2, 16, 16, 3)) if images is None else images
    params = official.jit(model.init)(jax.random.key(0), images)["params"] if params is None else params
    return official.jit(model.apply)({"params": params}, images, key)["logits"], params


@pytest.mark.parametrize("name", NAMES)
def test_stochastic_depth_is_for_training_only(name):
    model = official.tiny(name, Design(drop_path=0.5))
    images = jnp.asarray(official.images("input/16", 3, 3, 16, 16), jnp.float32)
    plain, params = logits(model, images)
    first, again, other = (logits(model, images, params, jax.random.key(seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4
    without = model.clone(design=dataclasses.replace(model.design, drop_path=0.0))
    np.testing.assert_array_equal(logits(without, images, params, jax.random.key(1))[0], plain)


def test_rates_of_stochastic_depth():
    arrays, design = official.golden("augmentation"), Design(drop_path=0.1)
    for name, form, depth in (
        ("vit", "constant", 9),
        ("pit", "constant", 3),
        ("t2t", "linear", 12),
        ("swin", "linear", 12),
    ):
        # T2T's token transformer is listed before the blocks, with a rate of 0.
        official_rates = arrays[f"drop_rate.{name}.values"][-depth:]
        rates = design.drop_rates(depth, form)
        np.testing.assert_allclose(rates, np.broadcast_to(official_rates, depth), rtol=1e-6, atol=1e-9)
    assert Design(drop_path=0.1, drop_path_form="linear").drop_rates(3, "constant")[0] == 0
    assert Design(drop_path=0.1, drop_path_form="constant").drop_rates(3, "linear")[0] == np.float32(0.1)


def test_images_that_are_not_square():
    for name in NAMES:
        model, images = official.tiny(name, official.design(1, 1)), jnp.ones((1, 16, 32, 3))
        params = jax.eval_shape(model.init, jax.random.key(0), images)
        assert jax.eval_shape(model.apply, params, images)["logits"].shape == (1, 5), name


def test_pooling_without_spt():
    """SPT in the embedding only costs what the paper's variant costs: 246.6 million for Swin at 64 pixels."""
    both = official.paper("swin", 64, official.design(1, 0))
    embedding_only = official.paper("swin", 64, official.design(1, 0, spt_pool=False))
    assert cost.macs(embedding_only, cost.Image(64)) == pytest.approx(246.6e6, rel=1e-3)
    assert cost.macs(both, cost.Image(64)) > cost.macs(embedding_only, cost.Image(64))


def test_sizes_for_imagenet():
    """Totals of the official code at 224 pixels."""
    for spt, total, macs in ((0, 5_710_504, 1253.7e6), (1, 6_308_044, 1369.3e6)):
        model = ViT(1000, 16, 192, 12, 3, 64, 768, official.design(spt, spt))
        assert cost.parameters(model, cost.Image(224)) == total
        assert cost.macs(model, cost.Image(224)) == pytest.approx(macs, rel=1e-4)


def test_half_precision_stays_close():
    arrays, prefix = official.golden("models_tiny"), "vit.spt1.lsa1."
    model = official.tiny("vit", official.design(1, 1, dtype=jnp.bfloat16))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), official.params(model, arrays, prefix))
    images = jnp.asarray(official.images("input/16", 3, 3, 16, 16), jnp.float32)
    half = logits(model, images, params)[0]
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, arrays[prefix + "logits"], atol=0.1)
    assert np.abs(half - arrays[prefix + "logits"]).max() > 1e-4


def test_more_soft_splits_mean_fewer_tokens():
    three = T2T(5, 3, 8, 32, 2, 2, 64)
    params = jax.eval_shape(three.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))["params"]
    assert {"tokens1", "tokens2"} < params.keys()
    assert params["tokens2"]["attention"]["qkv"]["kernel"].shape == (72, 24)
