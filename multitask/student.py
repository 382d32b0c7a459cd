"""One forward pass of the student: all views through the encoder, then heads and projections."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Shaped

from multitask.metric_regularizer import norm
from multitask.models import Encoder
from multitask.tasks import Task
from multitask.tasks.task import Critic, View

PyTree = Any


class Network(NamedTuple):
    """What is fixed before compilation."""

    encoder: Encoder
    tasks: tuple[Task, ...]
    projection: nn.Module
    bn_mode: str  # "joint": batch statistics over all views; "split": of each task's views, the first one's are kept
    clean_view: bool  # embeddings of the image itself instead of each task's view


class Passed(NamedTuple):
    """What comes out, for K tasks and n images."""

    losses: Float[Array, " K"]
    z: Float[Array, "K n D"]  # embeddings, rows of length 1
    metrics: dict[str, Array]
    batch_stats: PyTree
    critics: PyTree


def init_variables(network: Network, image: Shaped[Array, "1 *shape"], key: Array) -> tuple[PyTree, PyTree]:
    """(params, batch_stats) of encoder ("backbone"), heads and projections."""
    of_encoder, of_tasks = jax.random.split(key)
    encoder = network.encoder.module(train=False).init(of_encoder, image)
    features: Any = network.encoder.module(train=False).apply(encoder, image)
    params = {"backbone": encoder["params"], "heads": {}, "projections": {}}
    stats = {"backbone": encoder.get("batch_stats", {}), "heads": {}}
    for place, task in enumerate(network.tasks):
        of_head, of_projection = jax.random.split(jax.random.fold_in(of_tasks, place))
        head = task.head(False).init(of_head, features)
        params["heads"][task.name] = head["params"]
        stats["heads"][task.name] = head.get("batch_stats", {})
        params["projections"][task.name] = network.projection.init(of_projection, features["pooled"])["params"]
    return params, stats


def init_critics(network: Network, key: Array) -> PyTree:
    """Parameters and optimiser of the tasks' critics."""
    critics = {}
    for place, task in enumerate(network.tasks):
        if task.critic is not None:
            params = task.critic.init(jax.random.fold_in(key, place))
            critics[task.name] = {"params": params, "opt_state": task.critic.optimizer.init(params)}
    return critics


def make_views(network: Network, images: Shaped[Array, "n *shape"], memory: PyTree, indices: Array, key: Array) -> Any:
    """{task: View} of normalised images; `memory`: {task: rows of all images}."""
    views: dict[str, View] = {}
    for place, task in enumerate(network.tasks):
        rows = jax.tree.map(lambda leaf: leaf[indices], memory.get(task.name, {}))
        views[task.name] = task.view(jax.random.fold_in(key, place), images, rows)
    return views


def _encode(network: Network, variables: PyTree, inputs: Sequence[Array]) -> tuple[list[dict[str, Array]], PyTree]:
    """Features of each input in training mode, and the new running statistics."""
    module = network.encoder.module(train=True)

    def apply(images: Array) -> tuple[dict[str, Array], PyTree]:
        features, changed = module.apply(variables, images, mutable=["batch_stats"])
        return features, changed.get("batch_stats", {})

    if network.bn_mode == "split":
        each = [apply(images) for images in inputs]
        return [features for features, _ in each], each[0][1]
    features, stats = apply(jnp.concatenate(list(inputs)))
    sizes = [images.shape[0] for images in inputs]
    # Not slices, whose gradients are added up as padded arrays.
    split = {name: jax.lax.split(leaf, sizes) for name, leaf in features.items()}
    parts = [{name: pieces[place] for name, pieces in split.items()} for place in range(len(sizes))]
    return parts, stats


def student_forward(
    network: Network,
    params: PyTree,
    batch_stats: PyTree,
    critics: PyTree,
    images: Shaped[Array, "n *shape"],
    views: Any,
    key: Array,
) -> Passed:
    """Losses of all tasks, embeddings of all tasks, what is to be logged, and the state that a forward pass changes.

    A critic takes its step first, on the outputs without their gradient; the loss then meets the new critic.
    """
    inputs = [views[task.name].images for task in network.tasks]
    clean = [images] if network.clean_view else []
    variables = {"params": params["backbone"], "batch_stats": batch_stats["backbone"]}
    parts, backbone_stats = _encode(network, variables, [*inputs, *clean])
    losses, embeddings, metrics = [], [], {}
    head_stats, critics = {}, dict(critics)
    for place, task in enumerate(network.tasks):
        features, view = parts[place], views[task.name]
        head = {"params": params["heads"][task.name], "batch_stats": batch_stats["heads"][task.name]}
        outputs, changed = task.head(True).apply(head, features, mutable=["batch_stats"])
        head_stats[task.name] = changed.get("batch_stats", {})
        if task.critic is not None:
            critics[task.name] = _train_critic(task.critic, critics[task.name], outputs, jax.random.fold_in(key, place))
        critic = critics[task.name]["params"] if task.critic is not None else None
        value, extra = task.loss(outputs, view.target, critic)
        losses.append(value)
        metrics |= {f"{task.name}_{name}": number for name, number in extra.items()}
        seen, per_image = (parts[-1], 1) if network.clean_view else (features, task.num_views)
        embeddings.append(_embed(network, params["projections"][task.name], seen["pooled"], per_image))
    stats = {"backbone": backbone_stats, "heads": head_stats}
    return Passed(jnp.stack(losses), jnp.stack(embeddings), metrics, stats, critics)


def _embed(network: Network, params: PyTree, pooled: Float[Array, "nv c"], per_image: int) -> Float[Array, "n D"]:
    """norm(mean over an image's views of their projections)."""
    u: Any = network.projection.apply({"params": params}, pooled)
    return norm(jnp.mean(u.reshape(-1, per_image, u.shape[-1]), axis=1))


def _train_critic(rule: Critic, critic: PyTree, outputs: Any, key: Array) -> PyTree:
    """The critic after one step of its own optimiser. Nothing here is differentiated by the student's loss."""
    outputs, critic = jax.lax.stop_gradient((outputs, critic))
    gradient = jax.grad(rule.loss)(critic["params"], outputs, key)
    updates, opt_state = rule.optimizer.update(gradient, critic["opt_state"], critic["params"])
    return jax.lax.stop_gradient({"params": optax.apply_updates(critic["params"], updates), "opt_state": opt_state})


def project_all(
    network: Network, params: PyTree, backbone_stats: PyTree, images: Shaped[Array, "n *shape"]
) -> Float[Array, "K n D"]:
    """All tasks' projections of the images themselves in evaluation mode, not normalised."""
    variables = {"params": params["backbone"], "batch_stats": backbone_stats}
    features: Any = network.encoder.module(train=False).apply(variables, images)
    apply: Callable[..., Any] = network.projection.apply
    each = [params["projections"][task.name] for task in network.tasks]
    return jnp.stack([apply({"params": own}, features["pooled"]) for own in each])
