"""New pseudo-labels between steps: host code around compiled pieces, and nothing is compiled anew."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from common.augment import normalize
from common.evaluation import PerExample
from common.experiment import TrainState
from multitask.handover import pretrained_variables
from multitask.models import Encoder
from multitask.student import Network

PyTree = Any


def pooled_features(
    encoder: Encoder, mean: tuple[float, ...], std: tuple[float, ...], source: str, count: int, batch_size: int
) -> Callable[[TrainState, Any], Any]:
    """(state, data) -> pooled features [N, C] of all images as they are, by the encoder in evaluation mode.

    `source`: "online" or "teacher" (where there is none, "online").
    """

    def features(state: TrainState, data: Any, indices: Int[Array, " b"]) -> Array:
        images = normalize(data["images"][indices], mean, std)
        found: Any = encoder.module(train=False).apply(pretrained_variables(state, source), images)
        return found["pooled"]

    return PerExample(features, count, batch_size)


def relabel(
    network: Network, features: Callable[[TrainState, Any], Any], state: TrainState, data: Any, step: int, key: Array
) -> TrainState:
    """`Experiment.refresh`: new rows, a fresh head and fresh optimiser slots for each task that wants them."""
    del step
    computed = jnp.asarray(features(state, data))
    for place, task in enumerate(network.tasks):
        if task.relabel is None:
            continue
        of_rows, of_head = jax.random.split(jax.random.fold_in(key, place))
        rows = task.relabel(computed, state.model_state["tasks"][task.name], of_rows)
        model_state = {**state.model_state, "tasks": {**state.model_state["tasks"], task.name: rows}}
        state = restart_head(state.replace(model_state=model_state), network, place, computed[:1], of_head)
    return state


def restart_head(state: TrainState, network: Network, place: int, pooled: Array, key: Array) -> TrainState:
    """A freshly initialised head, and zeros in the optimiser slots that belong to it."""
    task = network.tasks[place]
    params = task.head(False).init(key, {"pooled": pooled})["params"]
    heads = {**state.params["heads"], task.name: params}

    def slot(path: tuple[Any, ...], leaf: Array) -> Array:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        belongs = ("heads", task.name) in itertools.pairwise(names)
        return jnp.zeros_like(leaf) if belongs else leaf

    opt_state = jax.tree_util.tree_map_with_path(slot, state.opt_state)
    return state.replace(params={**state.params, "heads": heads}, opt_state=opt_state)
