"""The outer loop: meta-gradient step and evaluation, as pure functions of the state and a batch of episodes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from common import parallel
from common.experiment import TrainState, apply_gradients
from common.metrics import Sums
from fewshot import adaptation, cxgrad, episodes, maml, maml_pp
from fewshot.adaptation import InnerLoop, Task
from fewshot.convolution import over_tasks
from fewshot.models import Conv4

# Images as indices, or the images themselves where the host holds them.
EpisodeBatch = Int[Array, "B N per_class"] | UInt8[Array, "B N per_class h w c"]


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
    task_loop: str = "vmap"  # see convolution.over_tasks


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


def each_task(recipe: Recipe, function: Callable[[Any, Task], Any], shared: Any, tasks: Task) -> Any:
    """`function(shared, task)` of every task, stacked; each device goes through its own tasks."""

    def own_tasks(shared, tasks):
        return over_tasks(lambda task: function(shared, task), tasks, recipe.task_loop)

    return parallel.map_shards(own_tasks)(shared, tasks)


def task_loss(recipe: Recipe, shared: Any, task: Task) -> tuple[Float[Array, ""], dict[str, Any]]:
    """Outer loss and trace of one task; `shared` is (parameters, multi-step importance or None)."""
    params, importance = shared
    return adaptation.task_loss(recipe.inner, recipe.network.apply, params, task, importance)


def task_gradient(recipe: Recipe, shared: Any, task: Task) -> tuple[dict[str, Any], Float[Array, ""], dict[str, Any]]:
    """Meta-gradient, outer loss and trace of one task.

    The gradient is taken task by task, so that one task's activations at a time are kept where tasks run in a loop.
    """
    params, importance = shared

    def loss(params):
        return task_loss(recipe, (params, importance), task)

    (value, trace), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return gradient, value, trace


def make_tasks(recipe: Recipe, images: UInt8[Array, "n h w c"] | None, batch: EpisodeBatch) -> Task:
    """The tasks of a batch of episodes: of the images that `batch` points to, or holds."""
    if batch.ndim == 3 and images is not None:
        return episodes.gather_tasks(images, batch, recipe.shots, recipe.mean, recipe.std)
    return episodes.make_tasks(batch, recipe.shots, recipe.mean, recipe.std)


def train_step(
    recipe: Recipe, state: TrainState, data: dict[str, Any], batch: EpisodeBatch, key: Array
) -> tuple[TrainState, Sums]:
    """One outer step on a batch of episodes, given as images or as indices into `data["train"]`."""
    tasks = make_tasks(recipe, data.get("train"), batch)
    importance = None
    if recipe.msl_epochs:
        epoch = state.step // recipe.steps_per_epoch
        importance = maml_pp.loss_importance(epoch, recipe.inner.num_steps, recipe.msl_epochs)

    gradients, losses, trace = each_task(
        recipe, functools.partial(task_gradient, recipe), (state.params, importance), tasks
    )
    gradients = jax.tree.map(lambda gradient: jnp.mean(gradient, axis=0), gradients)
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
    recipe: Recipe,
    state: TrainState,
    data: dict[str, Any],
    batch: Int[Array, " b"] | UInt8[Array, "b N per_class h w c"],
) -> EpisodeOutput:
    """Adapt to the fixed episodes `data["episodes"][batch]` of `data["held_out"]`, classify their query images.

    Where the host holds the images, `batch` has those of the episodes. `recipe.inner` should be first order: the values
    are the same, and no outer gradient is taken.
    """
    chosen = data["episodes"][batch] if batch.ndim == 1 else batch
    tasks = make_tasks(recipe, data.get("held_out"), chosen)
    _, trace = each_task(recipe, functools.partial(task_loss, recipe), (state.params, None), tasks)
    return EpisodeOutput(trace["logits"], trace["query_loss"][:, -1], trace["gradient_norm"])


def episode_labels(count: int, ways: int, queries: int) -> Int[np.ndarray, "E NQ"]:
    """The query labels of every episode: class after class."""
    return np.tile(np.repeat(np.arange(ways), queries), (count, 1))
