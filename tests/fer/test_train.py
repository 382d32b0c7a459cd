"""Whole official iterations: two updates, warm-up, schedule, clipping; and what else a step must and must not do."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from common import optim
from common.experiment import TrainState
from fer import grouping, train
from fer.layers import linear
from fer.models import Header, LatentRegressor, Network
from tests.fer import cli, official
from tests.fer.test_elim import recipe

LOSS, GRADIENT = 1e-4, 5e-4


class Flat(nn.Module):
    """The golden encoder: flattened channel first, linear (named "1" officially), ReLU."""

    @nn.compact
    def __call__(self, images, train=False):
        flat = images.transpose(0, 3, 1, 2).reshape(images.shape[0], -1)
        return jax.nn.relu(linear(24, 48, "1")(flat))


NETWORK = Network(Flat(), LatentRegressor(8, (20,), dropout=0.0), Header(160, 2))
MODULES = {"header": "ermfc"}


def tree(arrays, prefix, template):
    """A tree from names such as before.ermfc.bn1.weight."""
    parts = template.keys()
    return {
        part: official.load(
            template[part], lambda name, shape, part=part: arrays[f"{prefix}{MODULES.get(part, part)}.{name}"]
        )
        for part in parts
    }


def golden_recipe():
    arrays = official.golden("train_step")
    encoder, _, header = arrays["lr_encoder_regressor_header"]
    b1, b2 = arrays["betas"]
    schedule = {"schedule": "step", "learning_rate": float(encoder), "decay_factor": float(arrays["gamma"])}
    from ml_collections import ConfigDict

    return recipe(
        network=NETWORK,
        optimizer=optax.chain(optax.scale_by_adam(float(b1), float(b2), 1e-8), optax.scale(-1.0)),
        schedule=optim.make_schedule(ConfigDict(schedule | {"decay_steps": tuple(map(int, arrays["milestones"]))})),
        rate_factors={"encoder": 1.0, "regressor": 1.0, "header": float(header / encoder)},
        identities=int(arrays["no_domain"]),
        warm_up=tuple(map(int, arrays["warmup"])),
    )


def assert_gradients(gradients, arrays, prefix):
    for part, of_part in gradients.items():
        reference = official.load(
            of_part, lambda name, shape, part=part: arrays[f"{prefix}{MODULES.get(part, part)}.{name}"]
        )
        for path, value in flatten_dict(of_part).items():
            if (part, *path) in NOISE:  # a bias before a batch norm: zero but for rounding
                assert float(jnp.abs(value).max()) < 1e-5
            else:
                expected = functools.reduce(lambda tree, key: tree[key], path, reference)
                assert official.relative(value, expected) < GRADIENT, (prefix, part, path)


NOISE = {("regressor", "lin1", "bias"), ("header", "linear1", "bias")}


def test_four_official_iterations():
    arrays, given = official.golden("train_step"), golden_recipe()
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), jnp.zeros((2, 4, 4, 3)))
    params = tree(arrays, "before.", shapes["params"])
    statistics = tree(arrays, "before.", shapes["batch_stats"])
    now = train.Running(params, statistics, given.optimizer.init(params))

    @official.jit
    def first(now, images, batch, step):
        def loss(params):
            return train.supervised_loss(given, params, now.statistics, images, batch, jax.random.key(0))[0]

        return train.supervised_update(given, now, images, batch, jax.random.key(0), step), jax.grad(loss)(now.params)

    @official.jit
    def second(now, images, batch, groups, step):
        strength = given.weight * train.elim.warm_up(step, *given.warm_up)

        def loss(params):
            value = train.matching_loss(given, params, now.statistics, images, batch, groups, jax.random.key(0))[0]
            return strength * value

        gradients = train.clip_encoder(jax.grad(loss)(now.params), given.encoder_clip)[0]
        return train.matching_update(given, now, images, batch, groups, jax.random.key(0), step), gradients

    updates, matched = 0, 0
    for i in range(4):
        images = jnp.asarray(arrays[f"iter{i}.images"].transpose(0, 2, 3, 1))
        identity = jnp.asarray(np.unique(arrays[f"iter{i}.identity"], return_inverse=True)[1])
        batch = train.Batch(images, jnp.asarray(arrays[f"iter{i}.labels"]), identity)
        (now, loss, _), gradients = first(now, images, batch, jnp.asarray(i))
        updates += 1
        if i < 2:
            assert_gradients(gradients, arrays, f"iter{i}.sup_grad.")
        if float(train.elim.warm_up(i, *given.warm_up)) == 0:
            continue
        groups = grouping.make_groups(identity, jnp.asarray(arrays["picked"][matched]))
        (now, told), gradients = second(now, images, batch, groups, jnp.asarray(i))
        updates += 1
        assert official.relative(loss, arrays["sup_loss_logged"][matched]) < LOSS
        assert official.relative(told["identity_risk"], arrays["erm_loss_sum"][matched]) < LOSS
        assert official.relative(told["encoder_gradient"], arrays["encoder_grad_norm_before_clip"][matched]) < GRADIENT
        if i < 2:
            assert_gradients(gradients, arrays, f"iter{i}.erm_grad.")
        matched += 1
    assert (updates, matched) == (7, 3)
    rates = dict(zip(("encoder", "regressor", "header"), arrays["lr_encoder_regressor_header"], strict=True))
    after = flatten_dict(tree(arrays, "after.", shapes["params"]))
    for path, value in flatten_dict(now.params).items():
        most = 2 * updates if path in NOISE else 1e-2
        assert float(jnp.abs(value - after[path]).max()) <= most * rates[path[0]], path
    after = flatten_dict(tree(arrays, "after.", shapes["batch_stats"]))
    for path, value in flatten_dict(now.statistics).items():
        assert official.relative(value, after[path]) < (1e-5 if path[-1] == "var" else 1e-2), path


def state_and_batch(given, people=4, frames=3):
    random = np.random.default_rng(0)
    params = NETWORK.init(jax.random.key(0), jnp.zeros((2, 4, 4, 3)))
    state = TrainState(
        jnp.zeros((), jnp.int32), params["params"], given.optimizer.init(params["params"]), params["batch_stats"]
    )
    count = people * frames
    batch = train.Batch(
        jnp.asarray(random.integers(0, 256, (count, 4, 4, 3)), jnp.uint8),
        jnp.asarray(random.uniform(-1, 1, (count, 2)), jnp.float32),
        jnp.asarray(np.arange(count) % people, jnp.int32),
    )
    return state, batch


def moved(before, after):
    leaves = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return sum(float(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)).sum()) for a, b in leaves)


@pytest.mark.slow
def test_no_second_update_with_one_person_in_the_batch():
    given = golden_recipe()
    step = official.jit(functools.partial(train.train_step, given), static_argnums=0)
    state, batch = state_and_batch(given, people=1)
    state = state.replace(step=jnp.asarray(2))
    alone, told = step(True, state, None, batch, jax.random.key(0))
    first_only, _ = step(False, state, None, batch, jax.random.key(0))
    assert moved(alone.params, first_only.params) == 0
    assert moved(alone.opt_state, first_only.opt_state) == 0
    assert moved(alone.model_state, first_only.model_state) == 0
    assert float(told["identity_risk"][0]) == 0
    state, batch = state_and_batch(given, people=2)
    state = state.replace(step=jnp.asarray(2))
    matched, _ = step(True, state, None, batch, jax.random.key(0))
    assert moved(matched.params, step(False, state, None, batch, jax.random.key(0))[0].params) > 0


def test_header_statistics_of_the_second_update():
    states = {}
    for kind in ("all", "supervised_only"):
        given = golden_recipe()._replace(header_statistics=kind)
        state, batch = state_and_batch(given)
        state = state.replace(step=jnp.asarray(2))
        for second in (False, True):
            run = official.jit(functools.partial(train.train_step, given, second))
            states[kind, second], _ = run(state, None, batch, jax.random.key(0))
    header = {key: state.model_state["header"] for key, state in states.items()}
    assert moved(header["supervised_only", True], header["supervised_only", False]) == 0
    assert moved(header["all", True], header["all", False]) > 0
    regressor = {key: state.model_state["regressor"] for key, state in states.items()}
    assert moved(regressor["supervised_only", True], regressor["supervised_only", False]) > 0  # seen a second time


@pytest.mark.parametrize("method", ["plain", "penalty"])
def test_baselines_make_two_supervised_updates(method):
    given = golden_recipe()._replace(method=method)
    state, batch = state_and_batch(given)
    after, told = official.jit(functools.partial(train.train_step, given, True))(state, None, batch, jax.random.key(0))
    assert int(after.opt_state[0].count) == 2
    assert float(told["second_loss"][0]) < float(told["loss"][0])
    _, of_plain = official.jit(functools.partial(train.train_step, given._replace(method="plain"), True))(
        state, None, batch, jax.random.key(0)
    )
    assert (float(told["loss"][0]) > float(of_plain["loss"][0])) == (method == "penalty")


@pytest.mark.slow
def test_no_gradient_is_nan_where_it_matters():
    """One step of the smoke network under jax_debug_nans."""
    from fer import experiment

    config = cli.config()
    built = experiment.build(config, {})
    data = {**built.data, "images": jnp.asarray(built.data["images"])}
    data = jax.tree.map(jnp.asarray, data)
    state = built.init(data, jax.random.key(0)).replace(step=jnp.asarray(2, jnp.int32))
    batch = built.batch(data, state.step, jax.random.key(1))
    assert batch.images.shape == (16, 24, 24, 3)
    assert {int(n) for n in np.unique(batch.identity, return_counts=True)[1]} == {4}
    with jax.debug_nans(True):
        after, _ = jax.jit(built.train_step[1])(state, data, batch, jax.random.key(2))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))
