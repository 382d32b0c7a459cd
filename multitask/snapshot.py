"""Task snapshots: each task trains a copy of the shared weights for some steps, then the copies are averaged.

One step of the loop is one inner step of every task (order "parallel", the cost of a joint step) or of one task
("sequential", where a task starts where the one before it ended). Optimisers and heads stay with their tasks.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from common.experiment import TrainState
from common.metrics import Sums
from multitask import student, train
from multitask.temporal_ensemble import Targets, snapshot_average
from multitask.train import Recipe

PyTree = Any


def init(recipe: Recipe, data: Any, key: Array) -> TrainState:
    """The shared weights are the teacher; every task has a copy of them, and an optimiser."""
    state = train.init(recipe, data, key)
    copies = {task.name: state.model_state["teacher"] for task in recipe.network.tasks}
    opt_state = {name: recipe.optimizer.init(_own_params(state, copies, name)) for name in copies}
    return state.replace(opt_state=opt_state, model_state={**state.model_state, "copies": copies})


def _own_params(state: TrainState, copies: PyTree, name: str) -> PyTree:
    """What task `name` trains: its copy of encoder and projections, and its head."""
    return {**copies[name]["params"], "heads": {name: state.params["heads"][name]}}


def train_step(
    recipe: Recipe, state: TrainState, data: Any, batch: Int[Array, " n"], key: Array
) -> tuple[TrainState, Sums]:
    """One inner step of all tasks or of the one whose turn it is; an average at the end of a cycle."""
    of_augmentation, of_views, of_critics = jax.random.split(key, 3)
    images = recipe.augment(of_augmentation, data["images"][batch])
    views = student.make_views(recipe.network, images, state.model_state["tasks"], batch, of_views)
    target = train.anchors(recipe, state, images, batch) if recipe.beta_max else None
    names = [task.name for task in recipe.network.tasks]
    inner = recipe.ensemble.inner_steps
    if recipe.ensemble.order == "parallel":
        length, found = inner, {}
        for place, name in enumerate(names):
            start = state.model_state["copies"][name]
            found[name] = _inner_step(recipe, state, place, start, images, views[name], target, of_critics)
        new = {name: result[0] for name, result in found.items()}
        metrics = _metrics(recipe, [result[1] for result in found.values()], batch, jnp.ones(len(names)))
        state = _with_results(state, names, new)
    else:
        length = inner * len(names)
        state, metrics = _sequential(recipe, state, images, views, target, of_critics, batch)
    return _averaged(recipe, state, (state.step + 1) % length == 0), metrics


def _sequential(recipe: Recipe, state: TrainState, images, views, target, key, batch) -> tuple[TrainState, Sums]:
    """An inner step of the task whose turn it is; the other branches are not run."""
    names = [task.name for task in recipe.network.tasks]
    inner = recipe.ensemble.inner_steps
    turn, first = state.step // inner % len(names), state.step % inner == 0

    def branch(place: int):
        name, before = names[place], names[place - 1]

        def run(state: TrainState) -> tuple[TrainState, tuple[Array, Array, dict[str, Array]]]:
            copies = state.model_state["copies"]
            origin = copies[before] if place else state.model_state["teacher"]
            start = jax.tree.map(lambda a, b: jnp.where(first, a, b), origin, copies[name])
            result, found = _inner_step(recipe, state, place, start, images, views[name], target, key)
            return _with_results(state, [name], {name: result}), found

        return run

    shapes = [jax.eval_shape(branch(place), state)[1] for place in range(len(names))]

    def padded(place: int):
        """The same metrics from every branch, 0 where they are another task's."""

        def run(state: TrainState):
            state, found = branch(place)(state)
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            return state, [found if place == other else zeros[other] for other in range(len(names))]

        return run

    state, found = jax.lax.switch(turn, [padded(place) for place in range(len(names))], state)
    return state, _metrics(recipe, found, batch, jax.nn.one_hot(turn, len(names)))


def _inner_step(
    recipe: Recipe,
    state: TrainState,
    place: int,
    start: PyTree,
    images: Array,
    view: Any,
    target: Targets | None,
    key: Array,
) -> tuple[dict[str, PyTree], tuple[Array, Array, dict[str, Array]]]:
    """One optimiser step of task number `place` on λ_k L_k + β R_k / K, from the weights `start`."""
    network, name = recipe.network, recipe.network.tasks[place].name
    alone = network._replace(tasks=(network.tasks[place],))
    beta = train.regularizer_weight(recipe, state.step) / len(network.tasks)
    weight = train.loss_weights(recipe, state)[place]
    heads = state.model_state["batch_stats"]["heads"]
    stats = {"backbone": start["batch_stats"]["backbone"], "heads": {name: heads[name]}}
    critics = {key: value for key, value in state.model_state["critics"].items() if key == name}

    def objective(params: PyTree):
        passed = student.student_forward(alone, params, stats, critics, images, {name: view}, key)
        reg = jnp.zeros(())
        if target is not None:
            reg = jnp.mean(recipe.regularizer(passed.z, target.anchors, target.valid))
        return weight * passed.losses[0] + beta * reg, (passed, reg)

    params = _own_params(state, {name: start}, name)
    gradients, (passed, reg) = jax.grad(objective, has_aux=True)(params)
    updates, opt_state = recipe.optimizer.update(gradients, state.opt_state[name], params)
    taken: Any = optax.apply_updates(params, updates)
    result = {
        "copy": train.averaged(taken, passed.batch_stats),
        "head": taken["heads"][name],
        "head_stats": passed.batch_stats["heads"][name],
        "opt_state": opt_state,
        "critics": passed.critics,
    }
    metrics = dict(passed.metrics)
    if target is not None:
        metrics |= train.distances(alone, passed.z, target)
    return result, (passed.losses[0], reg, metrics)


def _with_results(state: TrainState, names: list[str], results: dict[str, dict[str, PyTree]]) -> TrainState:
    """The state after inner steps of these tasks."""
    model_state, opt_state, heads = dict(state.model_state), dict(state.opt_state), dict(state.params["heads"])
    stats = dict(model_state["batch_stats"]["heads"])
    copies, critics = dict(model_state["copies"]), dict(model_state["critics"])
    for name in names:
        result = results[name]
        copies[name], heads[name], stats[name] = result["copy"], result["head"], result["head_stats"]
        opt_state[name] = result["opt_state"]
        critics |= result["critics"]
    model_state |= {"copies": copies, "critics": critics}
    model_state["batch_stats"] = {**model_state["batch_stats"], "heads": stats}
    return state.replace(params={**state.params, "heads": heads}, opt_state=opt_state, model_state=model_state)


def _averaged(recipe: Recipe, state: TrainState, ended: Array) -> TrainState:
    """At the end of a cycle: the shared weights move towards the copies' mean, and the copies start from there."""
    names = [task.name for task in recipe.network.tasks]
    shared, copies = state.model_state["teacher"], state.model_state["copies"]
    weights = jnp.asarray(recipe.task_weights)
    average = snapshot_average(shared, [copies[name] for name in names], weights, recipe.ensemble.alpha)

    def chosen(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: jnp.where(ended, a, b), new, old)

    shared = chosen(average, shared)
    stats = {**state.model_state["batch_stats"], "backbone": shared["batch_stats"]["backbone"]}
    model_state = {
        **state.model_state,
        "teacher": shared,
        "copies": {name: chosen(shared, copies[name]) for name in names},
        "batch_stats": stats,
    }
    return state.replace(params={**state.params, **shared["params"]}, model_state=model_state)


def _metrics(
    recipe: Recipe, found: list[tuple[Array, Array, dict[str, Array]]], batch: Array, taken: Float[Array, " K"]
) -> Sums:
    """Means over the batch as (sum, count) of the tasks that took a step; the regulariser's is that of its terms."""
    size = batch.shape[0] * taken
    metrics: Sums = {}
    for place, (loss, reg, extra) in enumerate(found):
        task = recipe.network.tasks[place]
        values = {f"{task.name}_loss": loss, **extra}
        for name, value in values.items():
            metrics[name] = (jax.lax.stop_gradient(value) * size[place], size[place])
        total, count = metrics.get("regularizer", (jnp.zeros(()), jnp.zeros(())))
        metrics["regularizer"] = (total + jax.lax.stop_gradient(reg) * size[place], count + size[place])
    return metrics
