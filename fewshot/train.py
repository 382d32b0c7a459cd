"""The outer loop: meta-gradient step and evaluation, as pure functions of the state and a batch of episodes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from common import parallel
from common.experiment import TrainState, apply_gradients
from common.metrics import Sums
from fewshot import adaptation, cxgrad, episodes, maml, maml_pp
from fewshot.adaptation import InnerLoop, Task
from fewshot.models import Conv4


class Recipe(NamedTuple):
    """What is fixed before compilation."""

    network: Conv4
    inner: InnerLoop
    optimizer: optax.GradientTransformation
    shots: int
    mean: tuple[float, ...] | None  # of normalisation, None = images in [0, 1]
    std: tuple[float, ...] | None
    learned_rates: bool = False  # MAML++: a rate per tensor and step
    msl_epochs: int = 0  # MAML++: epochs of multi-step loss
    steps_per_epoch: int = 500
    unroll_tasks: bool = False  # a loop over the tasks instead of vmap


def init(recipe: Recipe, image_shape: tuple[int, int, int], data: Any, key: Array) -> TrainState:
    """Fresh network, inner rates and generator as the recipe has them."""
    net_key, generator_key = jax.random.split(key)
    params: dict[str, Any] = {"net": recipe.network.init(net_key, jnp.zeros((2, *image_shape)))["params"]}
    theta, _ = maml.split_parameters(params["net"], recipe.inner.adapted)
    if recipe.learned_rates:
        params["rates"] = maml_pp.init_rates(theta, recipe.inner.num_steps, recipe.inner.learning_rate)
    if recipe.inner.method == "cxgrad" and recipe.inner.scaling == "learned":
        layers = len(cxgrad.scaled_layers(theta))
        params["generator"] = cxgrad.init_generator(generator_key, recipe.inner.context_size, layers)
    model_state = {}
    if recipe.network.norm_steps:
        channels = {f"norm{i}": recipe.network.filters for i in range(4)}
        model_state = maml_pp.init_running(recipe.network.norm_steps, channels)
    return TrainState(jnp.zeros((), jnp.int32), params, recipe.optimizer.init(params), model_state)


def task_losses(
    recipe: Recipe, params: dict[str, Any], tasks: Task, importance: Float[Array, " T"] | None
) -> tuple[Float[Array, " B"], dict[str, Any]]:
    """Outer loss and trace of every task; each device works on its own tasks."""

    def one(shared, task):
        return adaptation.task_loss(recipe.inner, recipe.network.apply, shared[0], task, shared[1])

    def own_tasks(shared, tasks):
        if not recipe.unroll_tasks:
            return jax.vmap(one, in_axes=(None, 0))(shared, tasks)
        count = tasks.support_labels.shape[0]
        results = [one(shared, jax.tree.map(lambda leaf: leaf[i], tasks)) for i in range(count)]  # noqa: B023
        return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *results)

    return parallel.map_shards(own_tasks)((params, importance), tasks)


def train_step(
    recipe: Recipe, state: TrainState, data: dict[str, Any], batch: Int[Array, "B N K+Q"], key: Array
) -> tuple[TrainState, Sums]:
    """One outer step on a batch of episodes, given as image indices into `data["train"]`."""
    tasks = episodes.gather_tasks(data["train"], batch, recipe.shots, recipe.mean, recipe.std)
    importance = None
    if recipe.msl_epochs:
        epoch = state.step // recipe.steps_per_epoch
        importance = maml_pp.loss_importance(epoch, recipe.inner.num_steps, recipe.msl_epochs)

    def outer_loss(params):
        losses, trace = task_losses(recipe, params, tasks, importance)
        return jnp.mean(losses), (losses, trace)

    gradients, (losses, trace) = jax.grad(outer_loss, has_aux=True)(state.params)
    state = apply_gradients(state, recipe.optimizer, gradients)
    if recipe.network.norm_steps:
        state = state.replace(model_state=maml_pp.update_over_tasks(state.model_state, trace))
    return state, _metrics(recipe, losses, trace, tasks.query_labels)


def _metrics(recipe: Recipe, losses: Float[Array, " B"], trace: dict[str, Any], labels: Int[Array, "B NQ"]) -> Sums:
    num_tasks = losses.shape[0]

    def mean_over_tasks(values: Float[Array, " B"]) -> tuple[Array, Array]:
        return jnp.sum(values), jnp.asarray(num_tasks)

    correct = jnp.argmax(trace["logits"], axis=-1) == labels
    metrics = {
        "loss": mean_over_tasks(losses),
        "accuracy": mean_over_tasks(jnp.mean(correct, axis=-1)),
        "adaptation_loss": mean_over_tasks(jnp.mean(trace["support_loss"], axis=-1)),
    }
    if recipe.inner.method == "cxgrad":
        factors = trace["factors"]
        for layer in range(factors.shape[-1]):
            metrics[f"gamma_{layer}"] = mean_over_tasks(jnp.mean(factors[..., layer], axis=-1))
        last = factors[:, -1]
        spread = jnp.sqrt(jnp.mean(jnp.square(last - jnp.mean(last, axis=0, keepdims=True))))
        metrics["gamma_spread_over_tasks"] = (spread, jnp.asarray(1))
        metrics["context_norm"] = mean_over_tasks(jnp.linalg.norm(trace["context"][:, -1], axis=-1))
    return metrics


class EpisodeOutput(NamedTuple):
    """What evaluation keeps of each episode."""

    logits: Float[Array, "b NQ N"]
    query_loss: Float[Array, " b"]
    gradient_norm: dict[str, Float[Array, "b T"]]


def run_episodes(
    recipe: Recipe, split: str, state: TrainState, data: dict[str, Any], indices: Int[Array, " b"]
) -> EpisodeOutput:
    """Adapt to the fixed episodes `data[split + "_episodes"][indices]` and classify their query images.

    `recipe.inner` should be first order: the values are the same, and no outer gradient is taken.
    """
    batch = data[f"{split}_episodes"][indices]
    tasks = episodes.gather_tasks(data[split], batch, recipe.shots, recipe.mean, recipe.std)
    _, trace = task_losses(recipe, state.params, tasks, None)
    return EpisodeOutput(trace["logits"], trace["query_loss"][:, -1], trace["gradient_norm"])


def episode_labels(count: int, ways: int, queries: int) -> Int[np.ndarray, "E NQ"]:
    """The query labels of every episode: class after class."""
    return np.tile(np.repeat(np.arange(ways), queries), (count, 1))
