"""The train step against six official AdamW steps, and what a step must not do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from common import optim
from tests.vit_small import cli, official
from vit_small import experiment, train
from vit_small.augmentation import Augmentation
from vit_small.augmentation.mixing import Mix, mix, smooth_labels
from vit_small.official_names import to_official

MODES = {"none": 0, "cutmix": 1, "mixup": 2}
OPTIMIZER = {
    **{"name": "adamw", "clip_norm": 0.0, "weight_decay": 0.05, "b1": 0.9, "b2": 0.999, "eps": 1e-8},
    **{"schedule": "warmup_cosine", "learning_rate": 1e-2, "initial_learning_rate": 1e-6},
    **{"final_learning_rate": 1e-6, "warmup_steps": 3, "total_steps": 10},
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_six_official_steps(dtype):
    with jax.enable_x64(dtype == "float64"):
        arrays = official.golden("train_steps")
        model = official.tiny("vit", official.design(1, 1))
        optimizer = optim.make_optimizer(ConfigDict(OPTIMIZER))
        recipe = train.Recipe(model, optimizer, Augmentation(5, (0.5,) * 3, (0.25,) * 3))
        rates = jax.vmap(optim.make_schedule(ConfigDict(OPTIMIZER)))(jnp.arange(6))
        np.testing.assert_allclose(rates, arrays["lr"], rtol=1e-5)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), official.params(model, arrays, ""))
        state = optimizer.init(params)

        @official.jit
        def step(params, state, images, targets):
            def loss(params):
                return train.loss_and_logits(recipe, params, images, targets, None)[0]

            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, value, gradient

        def compare(tree, kind, tolerance):
            for name, array in to_official(model, tree).items():
                np.testing.assert_allclose(array, arrays[f"{kind}.{name}"], atol=tolerance, rtol=0, err_msg=name)

        for i in range(6):
            images = jnp.asarray(official.images(f"train/x{i}", 6, 3, 16, 16), dtype)
            targets = smooth_labels(jnp.asarray(arrays["labels"][i]), 5, 0.1)
            drawn = Mix(
                jnp.asarray(MODES[str(arrays["modes"][i])]),
                jnp.asarray(arrays["beta_draw"][i], dtype),
                jnp.asarray(arrays["centre"][i]),
                jnp.asarray(arrays["perm"][i]),
            )
            images, targets = mix(images, targets, drawn)
            if f"mixed_x.{i}" in arrays:
                np.testing.assert_allclose(images, arrays[f"mixed_x.{i}"].transpose(0, 2, 3, 1), atol=1e-6)
            params, state, loss, gradient = step(params, state, images, targets)
            np.testing.assert_allclose(loss, arrays["loss"][i], atol=1e-5)
            if i == 0:
                compare(gradient, "grad_step0", 1e-5)
            if i in (0, 5):
                compare(params, f"params_after_step{i}", 2e-5)


def built(name="vit", **fields):
    return experiment.build(cli.config(name, **fields), {})


def test_decay_of_matrices_only():
    optimizer = {"optimizer.warmup_steps": 0, "optimizer.initial_learning_rate": 1e-3}
    config = cli.config(decay="matrices", spt=True, lsa=True, **optimizer)
    recipe = experiment.make_recipe(config, 8, (0.5,) * 3, (0.25,) * 3)
    params = jax.eval_shape(recipe.model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = recipe.optimizer.update(zero, recipe.optimizer.init(params), params)
    decays = {
        jax.tree_util.keystr(p): float(jnp.abs(u).max()) > 0 for p, u in jax.tree_util.tree_leaves_with_path(updates)
    }
    assert {path for path, moved in decays.items() if moved} == {path for path in decays if path.endswith("['kernel']")}
    assert not decays["['position']"]
    assert not decays["['blocks']['attention']['inverse_temperature']"]


def test_held_out_images_are_not_trained_on():
    official_way, held_out = built(), built(selection="held_out", held_out_share=0.25)
    assert len(official_way.data["images"]) == 64
    assert len(held_out.data["images"]) == 48
    assert len(held_out.data["held_out_images"]) == 16 + 16
    shown = {image.tobytes() for image in held_out.data["images"]}
    hidden = {image.tobytes() for image in held_out.data["held_out_images"]}
    assert not shown & hidden
    np.testing.assert_array_equal(held_out.data["held_out_images"][16:], official_way.data["held_out_images"])


def test_a_step_depends_on_seed_and_step_alone():
    experiment_ = built()
    data = {**experiment_.data, "seed": jnp.uint32(experiment_.data["seed"])}
    batches = [experiment_.batch(data, jnp.asarray(step), jax.random.key(step)) for step in (0, 0, 1)]
    np.testing.assert_array_equal(batches[0], batches[1])
    assert not np.array_equal(batches[0], batches[2])
    other = experiment_.batch({**data, "seed": jnp.uint32(5)}, jnp.asarray(0), jax.random.key(0))
    assert not np.array_equal(batches[0], other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t2t", "swin"])
def test_first_loss_is_that_of_guessing(name):
    """Small initial weights: log of the number of classes."""
    model = official.paper(name, 32, official.design(1, 1))
    images = jnp.asarray(official.images("input/paper/32", 2, 3, 32, 32), jnp.float32)
    params = official.jit(model.init)(jax.random.key(0), images)
    logits = official.jit(model.apply)(params, images)["logits"]
    loss = optax.softmax_cross_entropy(logits, jnp.full_like(logits, 0.01)).mean()
    np.testing.assert_allclose(loss, np.log(100), atol=0.2)
