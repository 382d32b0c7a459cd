"""Train step and evaluation, as pure functions of the state, the data and image indices."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int

from common.augment import normalize
from common.experiment import TrainState, apply_gradients
from common.metrics import Sums
from vit_small.augmentation import Augmentation, augment
from vit_small.augmentation.mixing import smooth_labels


class Recipe(NamedTuple):
    """What is fixed before compilation."""

    model: nn.Module
    optimizer: optax.GradientTransformation
    augmentation: Augmentation


def init(recipe: Recipe, image_shape: tuple[int, int, int], data: Any, key: Array) -> TrainState:
    """Fresh parameters and optimiser."""
    params = recipe.model.init(key, jnp.zeros((1, *image_shape)))["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, recipe.optimizer.init(params), {})


def apply(model: nn.Module, params: Any, images: Float[Array, "B H W C"], key: Array | None = None) -> dict[str, Any]:
    """What a model returns: logits, features and so on."""
    out: Any = model.apply({"params": params}, images, key)
    return out


def loss_and_logits(
    recipe: Recipe, params: Any, images: Float[Array, "B H W C"], targets: Float[Array, "B K"], key: Array | None
) -> tuple[Float[Array, ""], Float[Array, "B K"]]:
    """Mean cross entropy with soft targets; `key`: of stochastic depth."""
    logits = apply(recipe.model, params, images, key)["logits"]
    return optax.softmax_cross_entropy(logits, targets).mean(), logits


def train_step(
    recipe: Recipe, state: TrainState, data: dict[str, Any], batch: Int[Array, " B"], key: Array
) -> tuple[TrainState, Sums]:
    """One step on the training images of these indices. The accuracy compares with the labels before mixing."""
    of_augmentation, of_depth = jax.random.split(key)
    labels = data["labels"][batch]
    images, targets = augment(data["images"][batch], labels, of_augmentation, recipe.augmentation)

    def loss(params):
        return loss_and_logits(recipe, params, images, targets, of_depth)

    (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    state = apply_gradients(state, recipe.optimizer, gradients)
    count = jnp.asarray(labels.shape[0])
    correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels)
    metrics = {"loss": (value * count, count), "accuracy": (correct, count)}
    learned = temperatures(state.params)
    if learned:
        metrics["temperature"] = (sum(jnp.sum(leaf) for leaf in learned), jnp.asarray(sum(t.size for t in learned)))
    return state, metrics


def temperatures(params: Any) -> list[Float[Array, "..."]]:
    """All learned temperatures, 1 / s, of all layers and heads."""
    leaves: Any = flatten_dict(params).items()
    return [1.0 / leaf for path, leaf in leaves if path[-1] == "inverse_temperature"]


def predict(recipe: Recipe, params: Any, images: Array) -> Float[Array, "B K"]:
    """Logits of uint8 images [B, H, W, C], normalised but not augmented."""
    normal = normalize(images, recipe.augmentation.mean, recipe.augmentation.std)
    return apply(recipe.model, params, normal)["logits"]


def evaluate(
    recipe: Recipe, state: TrainState, data: dict[str, Any], indices: Int[Array, " B"]
) -> dict[str, Float[Array, " B"]]:
    """Accuracy and smoothed loss of each of these held-out images."""
    labels = data["held_out_labels"][indices]
    logits = predict(recipe, state.params, data["held_out_images"][indices])
    spec = recipe.augmentation
    targets = smooth_labels(labels, spec.num_classes, spec.label_smoothing)
    correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return {"accuracy": correct, "loss": optax.softmax_cross_entropy(logits, targets)}
