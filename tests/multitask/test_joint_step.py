"""The step itself: four golden steps, and what must hold for every way of taking one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.experiment import TrainState
from multitask import diagnostics, snapshot, temporal_ensemble, train
from tests.multitask import vectors
from tests.multitask.vectors import ARRAYS, DATA, NAMES

CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def close(found, expected):
    paths = jax.tree_util.tree_leaves_with_path(expected)
    assert len(paths) == len(jax.tree.leaves(found))
    for (path, leaf), other in zip(paths, jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, leaf, **CLOSE, err_msg=jax.tree_util.keystr(path))


def float32(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def golden_state(recipe) -> TrainState:
    state = jax.jit(functools.partial(train.init, recipe))(DATA, jax.random.key(0))
    params = float32(vectors.params_of("init"))
    names = [task.name for task in recipe.network.tasks]
    params |= {part: {name: params[part][name] for name in names} for part in ("heads", "projections")}
    teacher = {"params": {name: params[name] for name in ("backbone", "projections")}, "batch_stats": {"backbone": {}}}
    return state.replace(params=params, model_state={**state.model_state, "teacher": teacher})


def test_four_golden_steps():
    recipe = vectors.recipe()
    state, step = golden_state(recipe), jax.jit(functools.partial(train.train_step, recipe))
    heads = state.params["heads"]
    anchor = train.anchors(recipe, state, DATA["images"][:6], vectors.batch(0)).anchors
    np.testing.assert_allclose(anchor, ARRAYS["ensemble0"], **CLOSE)
    for t in range(4):
        state, metrics = step(state, DATA, vectors.batch(t), jax.random.key(t))
        state = state.replace(step=state.step + 1)
        values = {name: float(total / count) for name, (total, count) in metrics.items()}
        losses = [values[f"{name}_loss"] for name in NAMES]
        np.testing.assert_allclose([*losses, values["regularizer"]], ARRAYS["losses"][t], **CLOSE)
        np.testing.assert_allclose(values["loss"], ARRAYS["total"][t], **CLOSE)
        heads = temporal_ensemble.param_ema(heads, state.params["heads"], 0.9, t + 1, "warmup").weights
    close(state.params, vectors.params_of("final"))
    expected = vectors.params_of("teacher")
    close(state.model_state["teacher"]["params"], {name: expected[name] for name in ("backbone", "projections")})
    close(heads, expected["heads"])


def first_gradient(recipe):
    """By plain SGD without momentum or decay: the parameters' change divided by minus the rate."""
    plain = vectors.optimizer(momentum=0.0, weight_decay=0.0, learning_rate=1.0)
    recipe = recipe._replace(optimizer=plain)
    state = golden_state(recipe)
    new, _ = jax.jit(functools.partial(train.train_step, recipe))(state, DATA, vectors.batch(0), jax.random.key(0))
    return jax.tree.map(lambda a, b: a - b, state.params, new.params)


def gradients(recipe, state):
    """`task_gradients` on the first batch."""
    compiled = jax.jit(functools.partial(diagnostics.task_gradients, recipe))
    return compiled(state, DATA, vectors.batch(0), jax.random.key(0))


def test_first_gradient():
    gradient = first_gradient(vectors.recipe())
    close(gradient, vectors.params_of("grad0"))


def test_without_regulariser_projections_get_no_gradient():
    gradient = first_gradient(vectors.recipe(beta_max=0.0))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient["projections"]))
    assert np.any(gradient["backbone"]["enc"]["kernel"])


def test_surgery_is_on_the_encoder_only():
    """Heads and projections get their plain gradients."""
    gradient = first_gradient(vectors.recipe(gradient="pcgrad"))
    close(gradient["heads"], vectors.params_of("grad0")["heads"])
    close(gradient["projections"], vectors.params_of("grad0")["projections"])


def test_surgery_removes_what_opposes():
    """With one task's loss turned round if need be, so that the two gradients oppose."""
    recipe = vectors.recipe(gradient="pcgrad", beta_max=0.0, tasks=("rec", "clu"))
    rows, _ = gradients(recipe, golden_state(recipe))
    first, second = np.asarray(rows)
    sign = -np.sign(first @ second)
    projected = first - first @ second / (second @ second) * second
    projected = projected + sign * (second - first @ second / (first @ first) * first)
    moved = first_gradient(recipe._replace(lambdas=(1.0, float(sign))))["backbone"]
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(moved)[0], projected, atol=1e-6)


def run(recipe, steps=3, since=0, state=None):
    module = snapshot if recipe.ensemble.mode == "task_snapshot" else train
    if state is None:
        state = jax.jit(functools.partial(module.init, recipe))(DATA, jax.random.key(0))
    step = jax.jit(functools.partial(module.train_step, recipe))
    for t in range(since, since + steps):
        state, metrics = step(state, DATA, vectors.batch(t), jax.random.key(t))
        state = state.replace(step=state.step + 1)
    return state, metrics


WAYS = [
    {"ensemble": {"mode": "task_snapshot", "alpha": 0.5, "inner_steps": 2}, "weighting": "dwa", "steps_per_epoch": 1},
    {"ensemble": {"mode": "none"}, "tasks": ("rec",), "kind": "triplet", "gradient": "pcgrad"},
    {"ensemble": {"mode": "param_ema", "bias_correction": "debias"}, "kind": "pairwise", "weighting": "uncertainty"},
]
MORE = [
    {"ensemble": {"mode": "task_snapshot", "alpha": 0.5, "inner_steps": 2, "order": "sequential"}, "kind": "center"},
    {"ensemble": {"mode": "feature_ema", "alpha": 0.6}, "weighting": "dwa", "steps_per_epoch": 1},
    {"ensemble": {"mode": "param_ema", "batch_stats": "copy"}, "gradient": "pcgrad", "weighting": "uncertainty"},
]


@pytest.mark.parametrize("way", [*WAYS, *(pytest.param(way, marks=pytest.mark.slow) for way in MORE)], ids=str)
def test_every_way_of_training_moves_and_stays_finite(way):
    recipe = vectors.recipe(**way)
    state, metrics = run(recipe, steps=7)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert all(np.isfinite(total) for total, _ in metrics.values())
    before = jax.jit(functools.partial(train.init, recipe))(DATA, jax.random.key(0)).params["backbone"]["enc"]["kernel"]
    assert float(jnp.abs(state.params["backbone"]["enc"]["kernel"] - before).max()) > 1e-3


def test_learned_weights_move_and_do_not_decay():
    state, _ = run(vectors.recipe(weighting="uncertainty"), steps=2)
    assert np.all(np.abs(state.params["log_variances"]) > 0)


def test_debiased_teacher_of_the_first_step_is_the_student():
    state, _ = run(vectors.recipe(ensemble={"mode": "param_ema", "bias_correction": "debias"}), steps=1)
    close(state.model_state["teacher"]["params"]["backbone"], state.params["backbone"])


def test_one_parallel_inner_step_of_sgd_is_a_joint_step():
    """With the rate (1 - alpha) w_k."""
    plain, fields = {"momentum": 0.0, "weight_decay": 0.0}, {"lambdas": (1.0, 1.0, 0.5)}
    apart = vectors.recipe(
        ensemble={"mode": "task_snapshot", "alpha": 0.25, "inner_steps": 1}, optimizer={**plain, "learning_rate": 0.3},
        **fields,
    )  # fmt: skip
    joint = vectors.recipe(optimizer={**plain, "learning_rate": 0.3 * 0.75 / 3}, **fields)
    one, _ = run(apart, steps=1)
    other, _ = run(joint, steps=1)
    for name in ("backbone", "projections"):
        close(one.params[name], other.params[name])


@pytest.mark.slow
def test_sequential_snapshots_by_hand():
    """Task k starts from what task k - 1 made; after all of them the shared weights move."""
    rule = {"mode": "task_snapshot", "alpha": 0.5, "inner_steps": 1, "order": "sequential"}
    recipe = vectors.recipe(ensemble=rule, beta_max=0.0, optimizer={"momentum": 0.0, "weight_decay": 0.0})
    start = jax.jit(functools.partial(snapshot.init, recipe))(DATA, jax.random.key(0))
    running = dict(start.params)
    seen = []
    for place, name in enumerate(NAMES):
        images, rows = DATA["images"][vectors.batch(place)], jax.tree.map(
            lambda leaf, place=place: leaf[vectors.batch(place)], start.model_state["tasks"][name]
        )  # fmt: skip
        task = vectors.TASKS[place]
        view = task.view(None, images, rows)

        def loss(params, task=task, view=view, name=name, place=place):
            features = vectors.Tanh().apply({"params": params["backbone"]}, view.images)
            outputs = task.head(True).apply({"params": params["heads"][name]}, features)
            return recipe.lambdas[place] * task.loss(outputs, view.target, None)[0]

        slope = jax.grad(loss)(running)
        running = jax.tree.map(lambda p, g: p - 0.1 * g, running, slope)
        seen.append(running["backbone"])
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *seen)
    expected = jax.tree.map(lambda a, b: (a + b) / 2, start.params["backbone"], mean)
    state, _ = run(recipe, steps=3)
    close(state.params["backbone"], expected)
    close(state.params["heads"], running["heads"])


def test_memory_is_read_before_it_is_written():
    recipe = vectors.recipe(ensemble={"mode": "feature_ema", "alpha": 0.6})
    state, metrics = run(recipe, steps=1)
    assert metrics["regularizer"][0] == 0  # nothing was known of any image
    counts = np.asarray(state.model_state["memory"]["counts"])
    assert np.all(counts[:6] == 1)
    assert not np.any(counts[6:])
    _, metrics = run(recipe, steps=4, since=1, state=state)
    assert metrics["regularizer"][0] > 0


def test_gradient_shares_and_cosines():
    recipe = vectors.recipe()
    state = golden_state(recipe)
    measure = jax.jit(functools.partial(diagnostics.task_bias, recipe))
    found = measure(state, DATA, vectors.batch(0), jax.random.key(0))
    assert float(sum(found[f"{name}_share"] for name in NAMES)) == pytest.approx(1)
    rows, _ = gradients(recipe, state)
    a, b = np.asarray(rows[0]), np.asarray(rows[2])
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert float(found["cosine_rec_clu"]) == pytest.approx(cosine, abs=1e-6)
