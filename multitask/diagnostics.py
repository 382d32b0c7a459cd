"""Is the shared encoder pulled towards one task? Shares and directions of the tasks' gradients on a fixed batch."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from common.experiment import TrainState
from multitask import student, train
from multitask.train import Recipe


def task_gradients(
    recipe: Recipe, state: TrainState, data: Any, indices: Int[Array, " n"], key: Array
) -> tuple[Float[Array, "K P"], student.Passed]:
    """Gradient of each task's own loss with respect to the encoder, flat, and the pass that they come from.

    K backward passes, so this is done at evaluations and not in the training step.
    """
    of_augmentation, of_views, of_critics = jax.random.split(key, 3)
    images = recipe.augment(of_augmentation, data["images"][indices])
    views = student.make_views(recipe.network, images, state.model_state["tasks"], indices, of_views)

    def losses(backbone: Any):
        params = {**state.params, "backbone": backbone}
        stats, critics = (state.model_state[name] for name in ("batch_stats", "critics"))
        passed = student.student_forward(recipe.network, params, stats, critics, images, views, of_critics)
        return passed.losses, passed

    values, pullback, passed = jax.vjp(losses, state.params["backbone"], has_aux=True)
    rows = [ravel_pytree(pullback(row)[0])[0] for row in jnp.eye(len(values))]
    return jnp.stack(rows), passed


def task_bias(
    recipe: Recipe, state: TrainState, data: Any, indices: Int[Array, " n"], key: Array
) -> dict[str, Float[Array, ""]]:
    """Losses, |g_k| / Σ_l |g_l| ("share"), cosines between tasks' gradients; with a regulariser also the embeddings'
    mean squared distance from the anchors and their spread (see `metric_regularizer.collapse_statistics`)."""
    network = recipe.network
    gradients, passed = task_gradients(recipe, state, data, indices, key)
    norms = jnp.linalg.norm(gradients, axis=1)
    found = train.named(network, "loss", passed.losses)
    found |= train.named(network, "share", norms / jnp.maximum(jnp.sum(norms), 1e-12))
    for a, b in itertools.combinations(range(len(network.tasks)), 2):
        product = jnp.sum(gradients[a] * gradients[b])
        names = (network.tasks[place].name for place in (a, b))
        found["cosine_" + "_".join(names)] = product / jnp.maximum(norms[a] * norms[b], 1e-12)
    if recipe.beta_max:
        images = recipe.augment(jax.random.split(key, 3)[0], data["images"][indices])
        found |= train.distances(network, passed.z, train.anchors(recipe, state, images, indices))
    return found
