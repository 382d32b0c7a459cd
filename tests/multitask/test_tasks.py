"""Every pretext task through the real networks: what it shows, what it learns, what it keeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multitask import experiment, student, tasks, train
from multitask.data import Pool
from multitask.tasks import jigsaw, reconstruction
from multitask.tasks.adversarial import Discriminator
from tests.multitask import cli

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
POOL = Pool(IMAGES, np.arange(12, dtype=np.int32) % 3, 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
NAMES = ("autoencoder", "denoising", "inpainting", "colorization", "rotation", "jigsaw", "clustering", "adversarial")
SMALL = {"jigsaw.crop": 15, "jigsaw.num_perms": 6, "augment.padding": 0, "batch_size": 8}


def recipe_of(*names, **fields):
    config = cli.config(tasks=names, **{**SMALL, **fields})
    return experiment.make_recipe(config, POOL)


def test_all_tasks_are_found():
    assert {*NAMES, "supervised"} == set(tasks.names())


def view_of(name, **fields):
    recipe = recipe_of(name, **fields)
    state_of = recipe.network.tasks[0].memory
    memory = {name: state_of(jnp.asarray(POOL.labels))} if state_of else {}
    images = recipe.augment(jax.random.key(0), jnp.asarray(IMAGES))
    views = student.make_views(recipe.network, images, memory, jnp.arange(12), jax.random.key(1))
    return images, views[name]


@pytest.mark.parametrize("name", NAMES)
def test_views(name):
    images, view = view_of(name)
    changed = np.any(np.asarray(view.images[:12] != images), axis=(1, 2, 3))
    same = {"autoencoder": True, "clustering": True, "adversarial": True}.get(name, False)
    assert view.images.shape == ((48 if name == "rotation" else 12), 16, 16, 3)
    assert not changed.any() if same else changed.any()
    if name in ("autoencoder", "denoising", "inpainting", "colorization"):
        np.testing.assert_array_equal(view.target["image"], images)


def test_rotation_views_stand_together():
    images, view = view_of("rotation")
    np.testing.assert_array_equal(view.images[::4], images)
    np.testing.assert_array_equal(view.images[5], np.rot90(images[1], 1, axes=(0, 1)))
    np.testing.assert_array_equal(view.target[:8], [0, 1, 2, 3, 0, 1, 2, 3])
    images, view = view_of("rotation", **{"rotation.num_views": 1})
    for turned, image, k in zip(view.images, images, np.asarray(view.target), strict=True):
        np.testing.assert_array_equal(turned, np.rot90(image, k, axes=(0, 1)))


def test_jigsaw_keeps_the_middle_and_blanks_the_rest():
    images, view = view_of("jigsaw")
    np.testing.assert_array_equal(view.images[:, -1], 0)
    np.testing.assert_array_equal(
        np.sort(view.images[:, :15, :15].reshape(12, -1)), np.sort(images[:, :15, :15].reshape(12, -1))
    )
    whole = jigsaw.shuffle_middle(images, jnp.tile(jnp.arange(4), (12, 1)), 2, 0)
    np.testing.assert_array_equal(whole, images)


def test_grey_is_grey_before_normalisation():
    images, view = view_of("colorization")
    raw = np.asarray(view.images) * POOL.std + POOL.mean
    np.testing.assert_allclose(raw[..., 0], raw[..., 2], atol=1e-6)
    np.testing.assert_allclose(raw[..., 0], IMAGES / 255.0 @ [0.299, 0.587, 0.114], atol=1e-6)
    assert images.shape == view.images.shape


def test_holes_lie_anywhere_in_the_image():
    mask = reconstruction.random_holes(jax.random.key(0), jnp.zeros((200, 9, 9, 3)))
    np.testing.assert_array_equal(mask.sum((1, 2, 3)), 16)
    assert np.all(mask.sum(0) > 0)  # every pixel is hidden at times


@pytest.mark.slow
def test_every_loss_falls_on_a_fixed_batch_and_the_critic_learns_apart():
    """All tasks at once, without augmentation or new draws: the same key at every step. One test for all of them, so
    that the step is compiled once."""
    recipe = recipe_of(*NAMES, **{"optimizer.learning_rate": 3e-3, "metric.ramp": 0.0, "tte.mode": "none"})
    data = {"images": jnp.asarray(IMAGES), "labels": jnp.asarray(POOL.labels)}
    start = jax.jit(functools.partial(train.init, recipe))(data, jax.random.key(0))
    rows = {**start.model_state["tasks"]["clustering"], "labels": jnp.arange(12) % 6}
    state = start.replace(model_state={**start.model_state, "tasks": {"clustering": rows}})
    step = jax.jit(functools.partial(train.train_step, recipe))
    found = []
    for _ in range(60):
        state, metrics = step(state, data, jnp.arange(8), jax.random.key(2))
        state = state.replace(step=state.step + 1)
        found.append({name: float(total / count) for name, (total, count) in metrics.items()})
    for key in ["regularizer", *(f"{name}_loss" for name in NAMES if name != "adversarial")]:
        assert found[-1][key] < found[0][key], key
    # The encoder's opponent moves too, so its loss need not fall; it must stay near the balance at log 2.
    assert abs(found[-1]["adversarial_loss"] - np.log(2)) < 1.0
    before, critic = (one.model_state["critics"]["adversarial"] for one in (start, state))
    assert int(optax.tree_utils.tree_get(critic["opt_state"], "count")) == 60
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before["params"], critic["params"])))
    assert "critics" not in state.params
    assert Discriminator(256).apply({"params": critic["params"]}, jnp.zeros((3, 64))).shape == (3,)
