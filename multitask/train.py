"""The pre-training step: views, one student pass, anchors, loss, optimiser, and only then the temporal ensemble.

What gets a gradient: the encoder from all tasks and the regulariser, a head from its task, a projection from the
regulariser; the teacher, anchors, memories, pseudo-labels and a critic's view of the codes from nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from common.experiment import TrainState
from common.metrics import Sums
from multitask import student, task_weighting, temporal_ensemble
from multitask.metric_regularizer import collapse_statistics, squared_distances, task_ensemble
from multitask.student import Network, Passed
from multitask.temporal_ensemble import Targets

PyTree = Any


class Ensemble(NamedTuple):
    """How the temporal ensemble is made; see the config."""

    mode: str
    alpha: float
    bias_correction: str = "warmup"
    batch_stats: str = "ema"
    order: str = "parallel"
    inner_steps: int = 1


class Recipe(NamedTuple):
    """What is fixed before compilation."""

    network: Network
    optimizer: optax.GradientTransformation
    augment: Callable[[Array, Array], Array]  # (key, raw images) -> augmented, normalised images
    regularizer: Callable[[Array, Array, Array], Array]  # (z, anchors, valid) -> R_k [K]
    ensemble: Ensemble
    task_weights: tuple[float, ...]
    beta_max: float
    ramp_steps: int
    weighting: str
    lambdas: tuple[float, ...]
    dwa_temperature: float
    gradient: str
    steps_per_epoch: int


def init(recipe: Recipe, data: Any, key: Array) -> TrainState:
    """Fresh networks; the teacher is a copy of the student."""
    network = recipe.network
    of_networks, of_critics = jax.random.split(key)
    image = recipe.augment(key, data["images"][:1])
    params, batch_stats = student.init_variables(network, image, of_networks)
    tasks = len(network.tasks)
    if recipe.weighting == "uncertainty":
        params["log_variances"] = jnp.zeros(tasks)
    memory = {task.name: task.memory(data["labels"]) for task in network.tasks if task.memory is not None}
    model_state = {
        "batch_stats": batch_stats,
        "tasks": memory,
        "critics": student.init_critics(network, of_critics),
    }
    mode = recipe.ensemble.mode
    if mode in ("param_ema", "task_snapshot"):
        average = averaged(params, batch_stats)
        model_state["teacher"] = average
        if mode == "param_ema" and recipe.ensemble.bias_correction == "debias":
            model_state["average"] = jax.tree.map(jnp.zeros_like, average)
    if mode == "feature_ema":
        z: Any = jax.eval_shape(lambda p, b: student.project_all(network, p, b, image), params, batch_stats["backbone"])
        memory_ = temporal_ensemble.feature_memory_init(len(data["images"]), tasks, z.shape[-1])
        model_state["memory"] = memory_._asdict()
    if recipe.weighting == "dwa":
        model_state["epoch_losses"] = task_weighting.EpochLosses(*jnp.zeros((3, tasks)))._asdict()
    return TrainState(jnp.zeros((), jnp.int32), params, recipe.optimizer.init(params), model_state)


def averaged(params: PyTree, batch_stats: PyTree) -> PyTree:
    """The part of the student that the ensemble averages: encoder, its running statistics, and all projections."""
    return {
        "params": {"backbone": params["backbone"], "projections": params["projections"]},
        "batch_stats": {"backbone": batch_stats["backbone"]},
    }


def anchors(recipe: Recipe, state: TrainState, images: Array, indices: Int[Array, " n"]) -> Targets:
    """e [n, D] of the step from the state before it, and which images have one."""
    network, weights = recipe.network, jnp.asarray(recipe.task_weights)
    if recipe.ensemble.mode == "feature_ema":
        memory = temporal_ensemble.Memory(**state.model_state["memory"])
        rows = jax.tree.map(lambda leaf: leaf[indices], memory)
        return temporal_ensemble.feature_memory_read(rows, recipe.ensemble.alpha, weights)
    source = state.model_state.get("teacher") or averaged(state.params, state.model_state["batch_stats"])
    u = student.project_all(network, source["params"], source["batch_stats"]["backbone"], images)
    return Targets(task_ensemble(u, weights), jnp.ones(images.shape[0], bool))


def loss_weights(recipe: Recipe, state: TrainState) -> Float[Array, " K"]:
    """λ_k of this step; with "uncertainty" they are learned, and these are 1."""
    tasks = len(recipe.network.tasks)
    if recipe.weighting == "dwa":
        history = task_weighting.EpochLosses(**state.model_state["epoch_losses"])
        epoch = state.step // recipe.steps_per_epoch
        return task_weighting.dynamic_weight_average(history.last, history.before, epoch, recipe.dwa_temperature)
    return jnp.asarray(recipe.lambdas) if recipe.lambdas else jnp.ones(tasks)


def weighted_losses(recipe: Recipe, params: PyTree, losses: Float[Array, " K"], lambdas: Array) -> Float[Array, " K"]:
    """The terms of the objective before the regulariser."""
    if recipe.weighting != "uncertainty":
        return lambdas * losses
    coefficients = jnp.array([0.5 if task.regression else 1.0 for task in recipe.network.tasks])
    return task_weighting.uncertainty_weighting(losses, params["log_variances"], coefficients)


def regularizer_weight(recipe: Recipe, step: Int[Array, ""]) -> Float[Array, ""]:
    """β(t) = β_max times the ramp."""
    return recipe.beta_max * task_weighting.sigmoid_rampup(step, recipe.ramp_steps)


def train_step(
    recipe: Recipe, state: TrainState, data: Any, batch: Int[Array, " n"], key: Array
) -> tuple[TrainState, Sums]:
    """One joint step of all tasks on the images of these indices."""
    of_augmentation, of_views, of_critics, of_order = jax.random.split(key, 4)
    network = recipe.network
    images = recipe.augment(of_augmentation, data["images"][batch])
    views = student.make_views(network, images, state.model_state["tasks"], batch, of_views)
    target = anchors(recipe, state, images, batch) if recipe.beta_max else None
    lambdas, beta = loss_weights(recipe, state), regularizer_weight(recipe, state.step)

    def objective(params: PyTree) -> tuple[Float[Array, " K1"], tuple[Passed, Array]]:
        """The K weighted losses and β R, whose sum is minimised."""
        passed = student.student_forward(
            network, params, state.model_state["batch_stats"], state.model_state["critics"], images, views, of_critics
        )
        terms = weighted_losses(recipe, params, passed.losses, lambdas)
        reg = jnp.zeros(())
        if target is not None:
            reg = jnp.mean(recipe.regularizer(passed.z, target.anchors, target.valid))
        return jnp.append(terms, beta * reg), (passed, reg)

    gradients, (terms, (passed, reg)) = differentiate(recipe, objective, state.params, of_order)
    updates, opt_state = recipe.optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    model_state = {**state.model_state, "batch_stats": passed.batch_stats, "critics": passed.critics}
    model_state |= ensemble_update(recipe, state, params, passed, batch)
    metrics = {"loss": jnp.sum(terms), "regularizer": reg, **named(network, "loss", passed.losses), **passed.metrics}
    if target is not None:
        metrics |= distances(network, passed.z, target)
    return state.replace(params=params, opt_state=opt_state, model_state=model_state), as_sums(metrics, batch)


def differentiate(recipe: Recipe, objective: Any, params: PyTree, key: Array) -> tuple[PyTree, tuple[Array, Any]]:
    """Gradient of the sum of the objective's terms; with "pcgrad" the encoder's part after gradient surgery.

    The surgery is among the tasks; the regulariser's gradient is added to what it gives.
    """
    if recipe.gradient == "sum":

        def total(params):
            terms, aux = objective(params)
            return jnp.sum(terms), (terms, aux)

        gradients, (terms, aux) = jax.grad(total, has_aux=True)(params)
        return gradients, (terms, aux)
    terms, pullback, aux = jax.vjp(objective, params, has_aux=True)
    each = [pullback(row)[0] for row in jnp.eye(len(terms))]
    flat = jnp.stack([ravel_pytree(gradient["backbone"])[0] for gradient in each])
    order = task_weighting.random_order(key, len(recipe.network.tasks))
    projected = task_weighting.pcgrad(flat[:-1], order).sum(0) + flat[-1]
    gradients = jax.tree.map(lambda *leaves: sum(leaves), *each)
    unravel = ravel_pytree(params["backbone"])[1]
    return {**gradients, "backbone": unravel(projected)}, (terms, aux)


def ensemble_update(recipe: Recipe, state: TrainState, params: PyTree, passed: Passed, batch: Array) -> PyTree:
    """The parts of the model state that follow the step: teacher, memory, history of losses."""
    rule, new = recipe.ensemble, {}
    if rule.mode == "param_ema":
        source = averaged(params, passed.batch_stats)
        average = state.model_state.get("average", state.model_state["teacher"])
        teacher = temporal_ensemble.param_ema(average, source, rule.alpha, state.step + 1, rule.bias_correction)
        weights = dict(teacher.weights)
        if rule.batch_stats == "copy":
            weights["batch_stats"] = source["batch_stats"]
        new["teacher"] = weights
        if "average" in state.model_state:
            new["average"] = teacher.average
    if rule.mode == "feature_ema":
        memory = temporal_ensemble.Memory(**state.model_state["memory"])
        z = jnp.swapaxes(passed.z, 0, 1)
        new["memory"] = temporal_ensemble.feature_memory_update(memory, batch, z, rule.alpha)._asdict()
    if recipe.weighting == "dwa":
        new["epoch_losses"] = add_to_history(recipe, state, passed.losses)
    return new


def add_to_history(recipe: Recipe, state: TrainState, losses: Float[Array, " K"]) -> PyTree:
    """The epoch means that "dwa" looks at, with this step's losses."""
    history = task_weighting.EpochLosses(**state.model_state["epoch_losses"])
    losses = jax.lax.stop_gradient(losses)
    return task_weighting.add_losses(history, losses, state.step, recipe.steps_per_epoch)._asdict()


def named(network: Network, what: str, values: Float[Array, " K"]) -> dict[str, Array]:
    """{"<task>_<what>": value}."""
    return {f"{task.name}_{what}": values[place] for place, task in enumerate(network.tasks)}


def distances(network: Network, z: Float[Array, "K n D"], target: Targets) -> dict[str, Array]:
    """Mean squared distance of each task's embeddings from the anchors, and how spread they are (collapse: near 0)."""
    count = jnp.maximum(jnp.sum(target.valid), 1)
    from_anchor = jnp.sum(jnp.where(target.valid[None], squared_distances(z, target.anchors), 0.0), axis=1) / count
    return named(network, "distance", from_anchor) | named(network, "spread", collapse_statistics(z))


def as_sums(metrics: dict[str, Array], batch: Array) -> Sums:
    """Means over the batch as (sum, count)."""
    count = jnp.asarray(batch.shape[0])
    return {name: (jax.lax.stop_gradient(value) * count, count) for name, value in metrics.items()}
