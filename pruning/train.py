"""Train step and evaluation of the whole and of the slim network, as pure functions of the state and image indices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, UInt8

from common.augment import normalize
from common.experiment import TrainState, apply_gradients
from common.metrics import Sums
from pruning.augment import Augmentation, view
from pruning.finetune import knowledge_loss
from pruning.graph import Graph
from pruning.models.network import Network
from pruning.objective import cross_entropy_sum


class Recipe(NamedTuple):
    """What is fixed before compilation."""

    graph: Graph
    optimizer: optax.GradientTransformation
    augmentation: Augmentation
    augmented: bool = True  # False: normalised only, as the official preparation of the search
    loss_scale: float = 1.0  # of the plain loss; 2 in the official preparation
    temperature: float = 0.0  # above 0: two views and the memory bank
    teacher_filter: str = "divergence"


def init(recipe: Recipe, image_shape: tuple[int, int, int], data: Any, key: Array) -> TrainState:
    """Parameters: those in `data["start"]` if there are such, else fresh ones."""
    variables = data.get("start") or Network(recipe.graph).init(key, jnp.zeros((1, *image_shape)))
    params, stats = variables["params"], variables["batch_stats"]
    return TrainState(jnp.zeros((), jnp.int32), params, recipe.optimizer.init(params), {"batch_stats": stats})


def train_step(
    recipe: Recipe, state: TrainState, data: dict[str, Any], batch: dict[str, Array], key: Array
) -> tuple[TrainState, Sums]:
    """One step on the images `batch["index"]`, with their rows `batch["bank"]` if the recipe has a temperature."""
    images, labels = data["images"][batch["index"]], data["labels"][batch["index"]]
    count = jnp.asarray(len(labels))
    if recipe.temperature:
        views = [view(images, one, recipe.augmentation, True) for one in jax.random.split(key)]
    elif recipe.augmented:
        views = [view(images, key, recipe.augmentation, False)]
    else:
        views = [normalize(images, recipe.augmentation.mean, recipe.augmentation.std)]

    def loss(params):
        logits, stats = _forward(recipe, params, state.model_state["batch_stats"], jnp.concatenate(views))
        logits = jnp.stack(jnp.split(logits, len(views)), 1)
        if recipe.temperature:
            bank = batch["bank"].astype(jnp.float32)
            value, used = knowledge_loss(logits, labels, bank, recipe.temperature, recipe.teacher_filter)
            return value / 2, (logits, stats, {"loss": (value * count, count), "teachers": (used * count, count)})
        value = cross_entropy_sum(logits[:, 0], labels) / len(labels)
        return value * recipe.loss_scale, (logits, stats, {"loss": (value * count, count)})

    gradients, (logits, stats, metrics) = jax.grad(loss, has_aux=True)(state.params)
    correct = (logits.argmax(-1) == labels[:, None]).sum()
    state = apply_gradients(state, recipe.optimizer, gradients)
    metrics["accuracy"] = (correct, count * len(views))
    return state.replace(model_state={"batch_stats": stats}), metrics


def _forward(recipe: Recipe, params: Any, stats: Any, images: Array) -> tuple[Float[Array, "n classes"], Any]:
    network = Network(recipe.graph, batch_statistics=True)
    logits, changed = network.apply({"params": params, "batch_stats": stats}, images, mutable=["batch_stats"])
    return logits, changed["batch_stats"]


def predict(
    graph: Graph, augmentation: Augmentation, variables: Any, images: UInt8[Array, "n h w c"]
) -> Float[Array, "n classes"]:
    """Logits with the moving statistics; a single view."""
    logits: Any = Network(graph).apply(variables, normalize(images, augmentation.mean, augmentation.std))
    return logits


def evaluate(
    graph: Graph, augmentation: Augmentation, state: TrainState, data: dict[str, Any], indices: Int[Array, " n"]
) -> dict[str, Float[Array, " n"]]:
    """Accuracy and loss of each of these test images."""
    variables = {"params": state.params, "batch_stats": state.model_state["batch_stats"]}
    labels = data["test_labels"][indices]
    logits = predict(graph, augmentation, variables, data["test_images"][indices])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {"accuracy": (logits.argmax(-1) == labels).astype(jnp.float32), "loss": loss}
