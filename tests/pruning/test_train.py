"""Train step, views, splits and the official checkpoint."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from common.experiment import TrainState
from pruning import augment, setup, slim, splits, train
from pruning.graph import narrow
from pruning.models.cifar_resnet import cifar_resnet
from pruning.models.network import Network
from pruning.search import split
from tests.pruning import networks
from tests.pruning.networks import golden, jit

SPEC = augment.Augmentation((0.5,) * 3, (0.25,) * 3, 0.5, 2, 0.0, 0.2, 0.2, "image")


def test_inputs():
    def stream(name):
        import zlib

        return np.random.default_rng(zlib.crc32(name.encode()))

    generator = stream("images/probe")
    coarse = generator.integers(0, 256, (40, 4, 4, 3))
    noise = generator.integers(-24, 25, (40, 32, 32, 3))
    images = np.clip(np.kron(coarse, np.ones((1, 8, 8, 1), int)) + noise, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(images, golden("inputs")["images"])
    np.testing.assert_array_equal(stream("labels/probe").integers(0, 10, 40), golden("inputs")["labels"])


def test_official_network(resnet56):
    """The real checkpoint: logits in both modes, features of every stage, moved statistics."""
    graph, variables = resnet56
    expected, x = golden("forward"), networks.images(24)
    apply = functools.partial(Network(graph).apply, capture_intermediates=True)
    logits, captured = jit(apply)(variables, x)
    np.testing.assert_allclose(logits, expected["logits_eval"], rtol=0, atol=1e-4)
    for stage, block in enumerate(("stem", "BasicBlock0.8", "BasicBlock1.8", "BasicBlock2.8")):
        (features,) = captured["intermediates"][block]["__call__"]
        means = features[:8].mean((1, 2))
        np.testing.assert_allclose(means, expected[f"stage{stage}_gap_eval"], rtol=0, atol=1e-4)
    moved = jit(functools.partial(Network(graph, True).apply, mutable=["batch_stats"]))
    logits, changed = moved(variables, x[:16])
    np.testing.assert_allclose(logits, expected["logits_batchstats"], rtol=0, atol=1e-4)
    for block, norm in (("stem", "bn"), ("BasicBlock1.0", "bn3"), ("BasicBlock2.8", "bn2")):
        name = norm if block == "stem" else f"{block}/{norm}"
        found = changed["batch_stats"][block][norm]
        np.testing.assert_allclose(found["mean"], expected[f"moved_mean|{name}"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["var"], expected[f"moved_var|{name}"], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_official_fine_tuning_steps(resnet56_float64):
    """Two updates of the slim network, in 64 bits; the second loss and step are less exact: 8 images are few for
    BatchNorm."""
    graph, variables = resnet56_float64
    choice, expected = networks.shared("slim"), networks.shared("finetune_step")
    keep = networks.keep(graph, choice["rates"])
    kept = slim.keep_indices(graph, split(graph, choice["rank"]), keep)
    params, stats = slim.slice_variables(graph, variables["params"], variables["batch_stats"], kept)
    views = jnp.asarray((expected["views_uint8"].astype(np.float64) - networks.MEAN) / networks.STD)
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.01, 0.9, nesterov=True))
    recipe = train.Recipe(narrow(graph, slim.widths(kept)), optimizer, SPEC, temperature=4.0)
    state = TrainState(jnp.int32(0), params, optimizer.init(params), {"batch_stats": stats})
    data = {"images": expected["views_uint8"][:, 0], "labels": jnp.asarray(expected["labels"])}
    batch = {"index": jnp.arange(4), "bank": jnp.asarray(expected["bank"])}

    # The views are given: the step takes them in place of its own.
    given = iter([])
    original = train.view
    train.view = lambda *arguments: next(given)
    try:
        for step, (of_loss, of_norm) in enumerate(((1e-4, 1e-4), (1e-4, 2e-2))):
            given = iter([views[:, 0], views[:, 1]])
            before = official_tensors(state)
            state, metrics = train.train_step(recipe, state, data, batch, jax.random.key(0))
            total, count = metrics["loss"]
            assert float(total / count) == pytest.approx(float(expected[f"loss_step{step}"]), rel=of_loss)
            after = official_tensors(state)
            norms = np.array([np.linalg.norm(after[name] - before[name]) for name in expected["names"]])
            theirs = expected[f"update_norm_step{step}"]
            np.testing.assert_allclose(norms, theirs, rtol=of_norm, atol=1e-6)
    finally:
        train.view = original


def official_tensors(state):
    """{official name: array} of a state."""
    names = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance", "kernel": "kernel"}
    found = {}
    for tree in (state.params, state.model_state["batch_stats"]):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            block, *rest = (part.key for part in path)
            prefix = [] if block == "stem" else [block]
            name = "biases" if (block, rest[-1]) == ("fc", "bias") else names[rest[-1]]
            found["/".join([*prefix, *rest[:-1], name])] = np.asarray(leaf)
    return found


def test_views_differ_by_image_or_not_at_all():
    images = jnp.asarray(np.broadcast_to(golden("inputs")["images"][:1], (6, 32, 32, 3)))
    by_image = augment.view(images, jax.random.key(0), SPEC, True)
    assert len({float(image.sum()) for image in by_image}) == 6
    spec = SPEC._replace(draws="batch", flip=0.0)
    by_batch = augment.view(images, jax.random.key(0), spec, True)
    np.testing.assert_allclose(by_batch, jnp.broadcast_to(by_batch[:1], by_batch.shape), atol=1e-5)
    nothing = SPEC._replace(flip=0.0, crop_padding=0, contrast=0.0, saturation=0.0)
    plain = augment.view(images, jax.random.key(0), nothing, True)
    np.testing.assert_allclose(plain, (images / 255.0 - 0.5) / 0.25, atol=1e-4)


def test_colours():
    pixels = jnp.asarray(golden("inputs")["images"][:2].astype(np.float32))
    factor = jnp.full((2, 1, 1, 1), 0.5)
    contrast = augment.change_contrast(pixels, factor)
    np.testing.assert_allclose(contrast.mean((1, 2)), pixels.mean((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(contrast.std((1, 2)), pixels.std((1, 2)) / 2, rtol=1e-4)
    paler = augment.change_saturation(pixels, factor)
    np.testing.assert_allclose(paler.max(-1), pixels.max(-1), rtol=1e-5)  # value stays
    spans = [values.max(-1) - values.min(-1) for values in (paler, pixels)]
    np.testing.assert_allclose(spans[0], spans[1] / 2, rtol=1e-3, atol=1e-3)
    grey = jnp.ones((1, 2, 2, 1)) * 7
    np.testing.assert_array_equal(augment.change_saturation(grey, jnp.full((1, 1, 1, 1), 0.5)), grey)


def test_parts_of_the_training_set():
    labels = np.tile(np.arange(3), 10)
    sub, val = (take(labels, 3, 4) for take in (splits.preparation_images, splits.validation_images))
    assert sorted(sub) == sorted(i for c in range(3) for i in np.flatnonzero(labels == c)[:4])
    assert sorted(val) == sorted(i for c in range(3) for i in np.flatnonzero(labels == c)[-4:])
    assert len(splits.preparation_images(labels, 3, 99)) == 30
    assert sub.tolist() != sorted(sub)


def test_an_epoch_is_one_pass():
    seen = np.concatenate([setup.batch_indices(1, step, 10, 3) for step in range(3)])
    assert len(set(seen.tolist())) == 9
    again = setup.batch_indices(1, 3, 10, 3)
    assert again.tolist() != seen[:3].tolist()
    np.testing.assert_array_equal(again, setup.batch_indices(1, 3, 10, 3))


def test_loss_scale_reaches_the_gradient_but_not_the_report():
    graph = cifar_resnet(8, 3, width=2)
    params, stats = networks.variables(graph, 8)
    data = {"images": np.zeros((4, 8, 8, 3), np.uint8), "labels": jnp.array([0, 1, 2, 0])}
    data["images"][:, ::2] = 200
    found = []
    for scale in (1.0, 2.0):
        recipe = train.Recipe(graph, optax.sgd(1.0), SPEC, augmented=False, loss_scale=scale)
        state = TrainState(jnp.int32(0), params, recipe.optimizer.init(params), {"batch_stats": stats})
        step = jit(functools.partial(train.train_step, recipe))
        after, metrics = step(state, data, {"index": jnp.arange(4)}, jax.random.key(0))
        found.append((after.params["fc"]["bias"] - params["fc"]["bias"], metrics["loss"][0]))
    np.testing.assert_allclose(found[1][0], 2 * found[0][0], rtol=1e-5)
    assert found[0][1] == found[1][1]
