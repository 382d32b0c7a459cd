"""Whole steps and a whole run against the official code, and the order of images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from anomaly import bank_building, evaluation, hypersphere, metrics, scoring, setup, train
from anomaly.configs import cfa
from anomaly.descriptor import PatchDescriptor, descriptor_width, pool_taps
from common import optim
from common.experiment import TrainState
from common.models.backbones import get_backbone, load_variables
from common.pretrained import save_safetensors
from tests.anomaly import golden
from tests.common.models.test_backbones import formula_weights


def make_recipe(width, tap_shapes, **changes):
    """The defaults of the config around given taps."""
    config = cfa.get_config()
    config.backbone = "resnet18"
    recipe = setup.make_recipe(config, get_backbone("resnet18"), cached=True)
    rows = tap_shapes[0][0] * tap_shapes[0][1]
    fields = {"network": PatchDescriptor(width), "tap_shapes": tap_shapes, "bank_rows": rows}
    return recipe._replace(**fields | changes)


def start(recipe, params, radius, bank, backbone=None):
    params = {"descriptor": params, "radius": jnp.asarray(radius, jnp.float32)}
    model_state = {"backbone": backbone or {}, "bank": jnp.asarray(bank)}
    return TrainState(jnp.zeros((), jnp.int32), params, recipe.optimizer.init(params), model_state)


def step_of(recipe):
    return jax.jit(functools.partial(train.train_step, recipe))


# --- optimiser --------------------------------------------------------------------------------------------------------


def run_amsgrad(optimizer, dtype):
    expected = golden.load("train_steps").under("amsgrad/")
    params = jnp.asarray(expected["params0"], dtype)
    state, found = optimizer.init(params), []
    for gradient in expected["grads"]:
        updates, state = optimizer.update(jnp.asarray(gradient, dtype), state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return np.stack(found), expected["params"]


@pytest.mark.parametrize("wide", [False, True])
def test_golden_amsgrad(wide):
    with jax.enable_x64(wide):
        optimizer = optim.make_optimizer(ConfigDict(cfa.get_config().optimizer.to_dict()))
        found, expected = run_amsgrad(optimizer, jnp.float64 if wide else jnp.float32)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 if wide else 5e-6)


def test_optax_amsgrad_is_another_one():
    found, expected = run_amsgrad(optax.amsgrad(1e-3), jnp.float32)
    assert np.abs(found - expected).max() > 1e-3


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden_steps():
    """A recipe and its step; the same with an optimiser that does nothing but hand over the gradient."""
    arrays = golden.load("train_steps")
    recipe = make_recipe(28, tuple((*arrays[f"p{i}"].shape[3:], arrays[f"p{i}"].shape[2]) for i in range(3)))
    plain = recipe._replace(optimizer=optax.sgd(-1.0))
    return recipe, step_of(recipe), plain, step_of(plain)


@pytest.mark.parametrize("tag", ["r_small", "r_large"])
def test_golden_train_steps(tag, golden_steps):
    recipe, step, plain, plain_step = golden_steps
    arrays = golden.load("train_steps")
    expected = arrays.under(f"{tag}/")
    assert recipe.network.width == descriptor_width((64, 128, 256), int(arrays["gamma_d"]))
    params = golden.descriptor_params("train_steps", 28, 450)
    np.testing.assert_array_equal(params["kernel"].T[:4], arrays["layer.conv.weight_init_first4"])
    np.testing.assert_array_equal(params["bias"], arrays["layer.conv.bias_init"])
    taps = [golden.nhwc(arrays[f"p{i}"]) for i in range(3)]  # [6 batches, 2 images, h, w, c]
    data = {"train": pool_taps([jnp.asarray(tap.reshape(12, *tap.shape[2:])) for tap in taps])}
    state = start(recipe, params, expected["r0"], arrays["C"].T)

    first = start(plain, params, expected["r0"], arrays["C"].T)
    moved, _ = plain_step(first, data, jnp.arange(2), jax.random.key(0))
    gradient = {name: leaf - params[name] for name, leaf in moved.params["descriptor"].items()}
    for ours, theirs in (("kernel", "grad_conv.weight_step1"), ("bias", "grad_conv.bias_step1")):
        target = expected[theirs].T
        np.testing.assert_allclose(gradient[ours], target, rtol=0, atol=1e-5 * np.abs(target).max())
    difference = moved.params["radius"] - np.float32(expected["r0"])
    np.testing.assert_allclose(difference, expected["grad_r_step1"], rtol=1e-5)

    for number in range(6):
        state, sums = step(state, data, 2 * number + jnp.arange(2), jax.random.key(0))
        total, count = sums["loss"]
        np.testing.assert_allclose(total / count, expected["losses"][number], rtol=2e-4)
        np.testing.assert_allclose(state.params["radius"], expected["r_after_each_step"][number], rtol=0, atol=2e-6)
        if number == 0:
            change = (state.params["descriptor"]["kernel"] - params["kernel"]).T[:, ::9]
            np.testing.assert_allclose(change, expected["conv.weight_after1_minus_init"], rtol=0, atol=2e-6)
    final = state.params["descriptor"]
    np.testing.assert_allclose(final["kernel"].T, expected["conv.weight_final"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(final["bias"], expected["conv.bias_final"], rtol=0, atol=2e-6)


def test_golden_end_to_end(tmp_path):
    """Backbone, bank, two epochs, scores and metrics of a run of the official code on ResNet-18."""
    expected = golden.load("end_to_end_resnet18")
    backbone = get_backbone("resnet18")
    save_safetensors(tmp_path / "w.safetensors", formula_weights("resnet18", backbone.module))
    variables = load_variables(backbone, tmp_path / "w.safetensors")

    @jax.jit
    def taps_of(variables, images):
        endpoints = backbone.module.apply(variables, images)
        return tuple(pool_taps([endpoints[name] for name in backbone.taps]))

    pixels = [golden.nhwc(expected[f"{split}_images"]).astype(np.float32) for split in ("train", "test")]
    taps = [taps_of(variables, jnp.asarray(np.concatenate([part, part])[:6])) for part in pixels]
    data = {"train": taps[0], "test": tuple(tap[:4] for tap in taps[1])}
    recipe = make_recipe(56, tuple(tap.shape[1:] for tap in taps[0]), size=(64, 64))
    state = start(recipe, golden.descriptor_params("end_to_end", 56, 450), 1e-5, jnp.zeros((256, 56)), variables)
    assert (expected["gamma_d"], expected["epochs"], expected["batch_size"]) == (8, 2, 2)  # of what follows
    builder = bank_building.BankBuilder(recipe, "running_mean", 6, 2, gamma_c=1, restarts=1, seed=0, coefficient=0.0)
    state = builder(state, data, 0, jax.random.key(0))
    bank = expected["bank_DxM"]
    np.testing.assert_allclose(state.model_state["bank"].T[:, ::4], bank, rtol=0, atol=1e-5 * np.abs(bank).max())
    step = step_of(recipe)
    for number in range(6):
        state, sums = step(state, data, 2 * (number % 3) + jnp.arange(2), jax.random.key(0))
        np.testing.assert_allclose(sums["loss"][0] / 2, expected["losses"][number], rtol=1e-4)
    np.testing.assert_allclose(state.params["radius"], expected["r_final"], rtol=0, atol=2e-6)

    @jax.jit
    def score(state, data):
        phi, bank = train.describe(recipe, state.params, data["test"]), state.model_state["bank"]
        patches = scoring.softmin_score(hypersphere.nearest_sq_distances(phi, bank, recipe.neighbours))
        return patches, train.score_split(recipe, state, data, "test", jnp.arange(4))

    patches, scores = score(state, data)
    target = expected["score"].reshape(4, -1)
    np.testing.assert_allclose(patches, target, rtol=0, atol=1e-3 * target.max())
    smoothed = np.asarray(scores.maps)
    bound = 1e-3 * np.abs(expected["smoothed"]).max()
    np.testing.assert_allclose(smoothed[:, ::4, ::4], expected["smoothed"], rtol=0, atol=bound)
    rescaled = scoring.rescale_dataset(smoothed.astype(np.float64))
    np.testing.assert_allclose(rescaled.max(axis=(1, 2)), expected["image_score"], rtol=0, atol=1e-3)
    masks = expected["masks"][:, 0] > 0
    labels = masks.any(axis=(1, 2)).astype(np.int32)
    found = evaluation.detection_metrics(rescaled, rescaled.max(axis=(1, 2)), labels, masks, with_reference=True)
    np.testing.assert_allclose(found["image_auroc"], expected["image_auroc"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["pixel_auroc"], expected["pixel_auroc"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["pro_reference"], expected["pro_reference_200step"], rtol=0, atol=5e-3)
    np.testing.assert_allclose(found["aupro"], expected["aupro_exact_030"], rtol=0, atol=5e-3)
    assert metrics.connected_regions(masks)[1] > 0


def test_cached_taps_small_chunks_and_a_fixed_radius_give_the_step_of_images():
    config = cfa.get_config("smoke")
    backbone = setup.make_backbone(config)
    variables = load_variables(backbone, "random")
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    recipe = setup.make_recipe(config, backbone, cached=False)
    taps = setup.cache_taps(recipe, variables, images, batch_size=2)
    params = golden.descriptor_params("any", recipe.network.width, 450)
    bank = np.random.default_rng(1).standard_normal((recipe.bank_rows, recipe.network.width), np.float32)
    state, found = start(recipe, params, recipe.initial_radius, bank, variables), []
    for changes, source in (({}, images), ({"cached": True, "chunk": 7, "learn_radius": False}, taps)):
        new, sums = step_of(recipe._replace(**changes))(state, {"train": source}, jnp.array([3, 1]), jax.random.key(0))
        found.append((sums["loss"][0], new.params))
        assert sums["repulsion"][0] == 0
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    for name, before in params.items():
        one, other = (leaves["descriptor"][name] for _, leaves in found)
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
        assert jnp.any(one != before)
    assert found[0][1]["radius"] != found[1][1]["radius"] == state.params["radius"]
    assert setup.taps_fit(recipe, 10, 1.0)
    assert not setup.taps_fit(recipe, 100, 1.0)


# --- order of images --------------------------------------------------------------------------------------------------


def epochs(count, batch_size, steps, drop_last, seed=0):
    seed = jnp.uint32(seed)
    draw = jax.jit(lambda step: train.sample_batch(seed, step, count, batch_size, drop_last))
    return np.concatenate([np.asarray(draw(step)) for step in range(steps)])


def test_every_image_once_an_epoch_also_where_batches_run_over_its_end():
    order = epochs(10, 4, 10, drop_last=False)  # 4 epochs
    for epoch in range(4):
        assert sorted(order[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert len({tuple(order[10 * epoch : 10 * epoch + 10]) for epoch in range(4)}) == 4
    np.testing.assert_array_equal(order, epochs(10, 4, 10, drop_last=False))
    assert (order != epochs(10, 4, 10, drop_last=False, seed=1)).any()


def test_drop_last_leaves_images_out():
    order = epochs(10, 4, 4, drop_last=True)
    for epoch in range(2):
        assert len(set(order[8 * epoch : 8 * epoch + 8])) == 8


def test_fewer_images_than_a_batch_holds():
    for drop_last in (False, True):
        order = epochs(3, 8, 3, drop_last)
        assert np.bincount(order).tolist() == [8, 8, 8]
