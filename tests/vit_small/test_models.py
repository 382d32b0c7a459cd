"""The five architectures against the official implementation: small ones in 64 bit with gradients, paper sizes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from common.cost import count_macs, count_parameters
from common.errors import UserError
from tests.vit_small import official
from tests.vit_small.official import CASES, NAMES
from vit_small import cost
from vit_small.design import Design
from vit_small.layers import drop_path
from vit_small.models import T2T, ViT
from vit_small.official_names import entries, from_official, to_official, unused

SLOW = pytest.mark.slow
# Compiling takes the time. Ordinary: both ideas in 64 bit, and the plain networks that have other layers than those.
ORDINARY = {*((name, 1, 1, "float64") for name in NAMES), *((name, 0, 0, "float32") for name in ("vit", "pit", "swin"))}
TINY_CASES = [
    pytest.param(name, *case, dtype, marks=[] if (name, *case, dtype) in ORDINARY else SLOW)
    for name in NAMES
    for case in CASES
    for dtype in (("float32", "float64") if case == (1, 1) else ("float32",))
]
# One network of each way to draw first weights: Xavier's, and PyTorch's with biases.
FRESH_CASES = [
    pytest.param(name, spt, side, marks=[] if (spt, side) == (1, 32) and name in ("vit", "swin") else SLOW)
    for name in NAMES
    for side in (32, 64)
    for spt in (0, 1)
]
LABELS = jnp.array([0, 4, 2])


def loss_and_outputs(model, params, images):
    def loss(params):
        out = model.apply({"params": params}, images)
        targets = 0.9 * jax.nn.one_hot(LABELS, 5, dtype=images.dtype) + 0.1 / 5
        return optax.softmax_cross_entropy(out["logits"], targets).mean(), out

    return official.jit(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.mark.parametrize(("name", "spt", "lsa", "dtype"), TINY_CASES)
def test_tiny_model(name, spt, lsa, dtype):
    with jax.enable_x64(dtype == "float64"):
        arrays, prefix = official.golden("models_tiny"), f"{name}.spt{spt}.lsa{lsa}."
        model = official.with_taps(official.tiny(name, official.design(spt, lsa)))
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), official.params(model, arrays, prefix))
        (loss, out), gradient = loss_and_outputs(
            model, params, jnp.asarray(official.images("input/16", 3, 3, 16, 16), dtype)
        )
        assert out["logits"].dtype == dtype
        # The official T2T keeps its sinusoid in single precision.
        exact = 1e-7 if name == "t2t" else 1e-12
        atol, rtol = (2e-5, 1e-4) if dtype == "float32" else (exact, exact)
        gradient_atol, gradient_rtol = (1e-5, 1e-3) if dtype == "float32" else (10 * exact, 10 * exact)

        def close(ours, golden, atol=atol, rtol=rtol):
            array = arrays[prefix + golden]
            stored = 1e-6 if array.dtype == np.float32 else 0.0  # some are rounded in the file
            np.testing.assert_allclose(ours, array, atol=max(atol, stored), rtol=max(rtol, stored), err_msg=golden)

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
        np.testing.assert_allclose(norms, golden, rtol=gradient_rtol, atol=gradient_atol)
        for i, n in enumerate(arrays.get(prefix + "temperature_names", ())):
            close(official_gradient[str(n)], f"temperature_grad.{i}", gradient_atol, gradient_rtol)


@pytest.mark.parametrize(("spt", "lsa"), CASES)
@pytest.mark.parametrize("name", NAMES)
def test_parameters_of_tiny_models(name, spt, lsa):
    arrays, prefix = official.golden("models_tiny"), f"{name}.spt{spt}.lsa{lsa}."
    model = official.tiny(name, official.design(spt, lsa))
    trainable, total = totals(model, official.like(model, 16), positions=official.positions(arrays, prefix))
    assert (trainable, total) == (arrays[prefix + "n_trainable"], arrays[prefix + "n_params"])
    assert cost.parameters(model, cost.Image(16)) == count_parameters(official.like(model, 16))


def totals(model, shapes, positions=65):
    """(trainable, all) numbers of the official module: T2T's has more than ours, and fixed positions."""
    extra = unused(model, positions)
    frozen = extra["pos_embed"].size if extra else 0
    trainable = count_parameters(shapes) + sum(array.size for array in extra.values()) - frozen
    return trainable, trainable + frozen


@pytest.mark.parametrize("name", NAMES)
def test_layers_written_out_and_fused_spt_are_the_same_model(name):
    arrays, prefix = official.golden("models_tiny"), f"{name}.spt1.lsa1."
    model = official.tiny(name, official.design(1, 1, scan=False, fused=True))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), official.params(model, arrays, prefix))
    out, _ = logits(model, jnp.asarray(official.images("input/16", 3, 3, 16, 16), jnp.float32), params)
    np.testing.assert_allclose(out, arrays[prefix + "logits"], atol=2e-5)


@pytest.mark.parametrize(
    ("spt", "lsa", "side"),
    [
        pytest.param(*case, side, marks=[] if (*case, side) == (1, 1, 32) else SLOW)
        for side in (32, 64)
        for case in CASES
    ],
)
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
    shapes = {}

    def init(key):  # traced once, for the shapes and for the multiplications of the forward pass in it
        out, variables = model.init_with_output(key, jnp.zeros((1, side, side, 3)))
        shapes.update(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables["params"]))
        return out["logits"]

    counted = count_macs(init, jax.random.key(0))
    assert totals(model, shapes) == (arrays[prefix + "n_trainable"], arrays[prefix + "n_params"])
    assert cost.parameters(model, cost.Image(side)) == count_parameters(shapes)

    assert counted == arrays[prefix + "matmul_macs"]
    assert cost.macs(model, cost.Image(side)) == counted

    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    ours = {n: array.shape for n, array in to_official(model, zeros).items()}
    assert ours == {n: shape for n, (shape, _, _) in official.table(tables, prefix).items()}


@pytest.mark.parametrize(("name", "spt", "side"), FRESH_CASES)
def test_fresh_weights_are_spread_as_the_official_ones(name, spt, side):
    """With LSA and, since that adds no more than temperatures, without."""
    tables = official.golden("models_paper_size_parameters")
    model = official.paper(name, side, official.design(spt, 1))
    params = official.jit(lambda key: model.init(key, jnp.zeros((1, side, side, 3)))["params"])(jax.random.key(0))
    ours = to_official(model, params)
    for lsa in (0, 1):
        prefix = f"{name}.img{side}.spt{spt}.lsa{lsa}."
        rows = official.table(tables, prefix)
        assert rows.keys() <= ours.keys()
        statistics = tables[prefix + "official_init_std_mean_absmax"]
        for (n, (_, kind, _)), (std, mean, _) in zip(rows.items(), statistics, strict=True):
            if ours[n].size > 5000 and kind != "frozen":
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
    arrays, prefix = official.golden("models_tiny"), f"{name}.spt0.lsa0."
    model = official.tiny(name, Design(drop_path=0.5))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), official.params(model, arrays, prefix))
    images = jnp.asarray(official.images("input/16", 3, 3, 16, 16), jnp.float32)
    train = official.jit(lambda key: model.apply({"params": params}, images, key)["logits"])
    first, again, other = (train(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4

    def draws(model, key):
        program = jax.make_jaxpr(lambda key: model.apply({"params": params}, images, key)["logits"])(key)
        return "random_bits" in str(program)

    without = model.clone(design=dataclasses.replace(model.design, drop_path=0.0))
    assert draws(model, jax.random.key(1))
    assert not draws(model, None)
    assert not draws(without, jax.random.key(1))


def test_dropped_branches_equal_official():
    arrays = official.golden("augmentation").under("drop_path.")
    branch, uniform = (jnp.asarray(arrays[name], jnp.float32) for name in ("x", "uniform"))
    ours = drop_path(branch, float(arrays["rate"]), uniform)
    np.testing.assert_allclose(ours, arrays["y"], rtol=1e-6)
    assert (np.asarray(ours)[np.asarray(uniform) < arrays["rate"]] == 0).all()


@pytest.mark.parametrize(
    ("name", "form", "depth", "last"),
    # Of ViT, PiT and CaiT the file has one number for each stack; T2T's token transformer, at rate 0, comes first.
    [
        ("vit", "constant", 1, "transformer.drop_path"),
        ("pit", "constant", 3, "layers.4.drop_path"),
        ("cait", "constant", 2, "cls_transformer.drop_path"),
        ("t2t", "linear", 12, "blocks.11"),
        ("swin", "linear", 12, "layers.2.blocks.3"),
    ],
)
def test_rates_of_stochastic_depth(name, form, depth, last):
    golden = official.golden("augmentation")[f"drop_rate.{name}.values"]
    layers = official.golden("augmentation")[f"drop_rate.{name}.names"]
    assert (len(layers), layers[-1]) == (len(golden), last)
    np.testing.assert_allclose(Design(drop_path=0.1).drop_rates(depth, form), golden[-depth:], rtol=1e-6, atol=1e-9)
    assert (golden[:-depth] == 0).all()


def test_other_rates_of_stochastic_depth():
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
