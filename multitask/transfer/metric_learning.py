"""Fine-tuning an embedding with a metric loss, as pure functions of the state, the data and image indices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from common.augment import flip_horizontal, image_keys, normalize
from common.data.dataset import Split
from common.errors import UserError
from common.experiment import TrainState, apply_gradients
from common.metrics import Sums
from multitask.models import Encoder
from multitask.transfer.metric_losses import npair, semi_hard_triplet


class Recipe(NamedTuple):
    """What is fixed before compilation."""

    encoder: Encoder
    optimizer: optax.GradientTransformation
    embedding_dim: int
    loss: str
    l2: float
    margin: float
    images_per_class: int
    image_size: int
    min_area: float
    flip: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]


def find_classes(split: Split, at_least: int) -> Int[np.ndarray, "classes most"]:
    """Where the images of each class stand, padded with -1 to the largest class.

    Raises:
      UserError: a class with fewer than `at_least` images.
    """
    members = [np.flatnonzero(split.labels == label) for label in range(split.num_classes)]
    for label, found in enumerate(members):
        if len(found) < at_least:
            raise UserError(
                f"class {split.class_names[label]!r} has {len(found)} images to learn from, but "
                f"config.clustering.images_per_class is {at_least}: leave the class out or ask for fewer images."
            )
    places = np.full((len(members), max(map(len, members))), -1, np.int32)
    for row, found in zip(places, members, strict=True):
        row[: len(found)] = found
    return places


def sample(
    key: PRNGKeyArray, places: Int[Array, "classes most"], batch_size: int, images_per_class: int
) -> Int[Array, " B"]:
    """Images of `batch_size / images_per_class` different classes, so many different ones of each, class by class."""
    of_classes, of_images = jax.random.split(key)
    chosen = places[jax.random.permutation(of_classes, places.shape[0])[: batch_size // images_per_class]]
    order = jnp.argsort(jnp.where(chosen >= 0, jax.random.uniform(of_images, chosen.shape), jnp.inf), axis=1)
    return jnp.take_along_axis(chosen, order[:, :images_per_class], axis=1).reshape(-1)


def make_optimizer(learning_rate: float, new_layer_factor: float) -> optax.GradientTransformation:
    """Adam, with larger steps of the new layer."""
    faster = optax.masked(optax.scale(new_layer_factor), {"encoder": False, "embedding": True})
    return optax.chain(optax.adam(learning_rate), faster)


def init(recipe: Recipe, data: Any, key: Array) -> TrainState:
    """The start's encoder under a fresh linear layer."""
    start = jax.tree.map(jnp.copy, data["start"])  # the state's buffers are given away at every step
    shape = recipe.encoder.channels[-1], recipe.embedding_dim
    kernel = jax.nn.initializers.lecun_normal()(key, shape)
    params = {"encoder": start["params"], "embedding": {"kernel": kernel, "bias": jnp.zeros(recipe.embedding_dim)}}
    opt_state = recipe.optimizer.init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, {"batch_stats": start["batch_stats"]})


def middle(images: Array, size: int) -> Array:
    """The middle `size` x `size` pixels of images."""
    first = (images.shape[1] - size) // 2
    return images[:, first : first + size, first : first + size]


def random_part(
    images: Float[Array, "B H W 3"], keys: Key[Array, " B"], size: int, min_area: float, flip: bool
) -> Float[Array, "B size size 3"]:
    """A random square of each image, of at least `min_area` of it, resized; perhaps mirrored.

    With `min_area` 1 and images of the wanted size the image as it is, with larger ones the middle.
    """
    draws = jax.vmap(lambda key: jax.random.uniform(key, (4,)))(keys)
    if min_area < 1:
        side = images.shape[1]

        def draw(image: Array, numbers: Array) -> Array:
            part = side * jnp.sqrt(min_area + numbers[0] * (1 - min_area))
            scale = size / part
            shift = -numbers[1:3] * (side - part) * scale
            shape = (size, size, image.shape[-1])
            return jax.image.scale_and_translate(image, shape, (0, 1), jnp.stack([scale, scale]), shift, "linear")

        images = jax.vmap(draw)(images, draws)
    else:
        images = middle(images, size)
    return flip_horizontal(images, draws[:, 3] < 0.5) if flip else images


def loss(recipe: Recipe, embeddings: Float[Array, "B d"]) -> Float[Array, ""]:
    """Of a batch whose images come class by class."""
    if recipe.loss == "npair":
        return npair(embeddings[::2], embeddings[1::2], recipe.l2)
    labels = jnp.arange(len(embeddings)) // recipe.images_per_class
    return semi_hard_triplet(embeddings, labels, recipe.margin)


def train_step(
    recipe: Recipe, state: TrainState, data: dict[str, Any], batch: Int[Array, " B"], key: Array
) -> tuple[TrainState, Sums]:
    """One step of Adam on the training images of these indices."""
    images = normalize(data["images"][batch], recipe.mean, recipe.std)
    images = random_part(images, image_keys(key, len(batch)), recipe.image_size, recipe.min_area, recipe.flip)

    def total(params):
        variables = {"params": params["encoder"], "batch_stats": state.model_state["batch_stats"]}
        features, updated = recipe.encoder.module(train=True).apply(variables, images, mutable=["batch_stats"])
        return loss(recipe, project(params, features["pooled"])), updated["batch_stats"]

    (value, batch_stats), gradients = jax.value_and_grad(total, has_aux=True)(state.params)
    state = apply_gradients(state, recipe.optimizer, gradients)
    return state.replace(model_state={"batch_stats": batch_stats}), {"loss": (value, jnp.ones(()))}


def project(params: Any, pooled: Float[Array, "B c"]) -> Float[Array, "B d"]:
    """The embedding of pooled features."""
    return pooled @ params["embedding"]["kernel"] + params["embedding"]["bias"][None]


def embed(recipe: Recipe, state: TrainState, images: Array) -> Float[Array, "B d"]:
    """Embeddings of the middle of uint8 images [B, H, W, 3]."""
    normal = normalize(middle(images, recipe.image_size), recipe.mean, recipe.std)
    variables = {"params": state.params["encoder"], "batch_stats": state.model_state["batch_stats"]}
    features: Any = recipe.encoder.module().apply(variables, normal)
    return project(state.params, features["pooled"])
