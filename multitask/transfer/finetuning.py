"""Fine-tuning a classifier several times in one phase: label fractions, and for each of them rates to choose from.

A phase is a sequence of rounds of equally many steps. Before each round the network starts anew from the pre-trained
encoder (`refresh` of the training loop), so that a resumed run needs nothing but its state. Search rounds leave a share
of the images out and are judged on it; the round after them takes the best rate and all images.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from common.augment import flip_horizontal, image_keys, normalize, padded_crop, uniform_integers
from common.data.classification import few_places
from common.data.dataset import Split
from common.errors import UserError
from common.experiment import TrainState
from common.metrics import Sums
from multitask.models import Encoder

HEAD_STD = 0.01


class Round(NamedTuple):
    """One training from the start.

    Attributes:
      fraction: of the labelled images of each class.
      rate: learning rate; 0: the best of the search rounds before.
      search: whether it is judged on images left out, rather than tested.
      frozen: only the linear layer is trained, on features in evaluation mode.
    """

    fraction: float
    rate: float
    search: bool
    frozen: bool = False


class Recipe(NamedTuple):
    """What is fixed before compilation."""

    encoder: Encoder
    num_classes: int
    rounds: Sequence[Round]
    num_steps: int  # of each round
    weight_decay: float  # of kernels, added to the gradient
    momentum: float  # Nesterov's
    flip: bool
    padding: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def plan(fractions: Sequence[float], rates: Sequence[float], frozen_rate: float = 0.0) -> list[Round]:
    """For each fraction a search round for each rate (none where there is no choice) and the round that counts.

    A `frozen_rate` above 0 puts a linear probe by SGD on all images first.
    """
    rounds = [Round(1.0, frozen_rate, False, True)] if frozen_rate else []
    for fraction in fractions:
        if len(rates) > 1:
            rounds += [Round(fraction, rate, True) for rate in rates]
        rounds.append(Round(fraction, rates[0] if len(rates) == 1 else 0.0, False))
    return rounds


class Places(NamedTuple):
    """Which training images each round learns from, and which it is judged on.

    Attributes:
      train: [rounds, n]; those of a round, repeated in new orders until there are n of all training images.
      held_out: for each round; empty where it is tested.
    """

    train: Int[np.ndarray, "rounds n"]
    held_out: list[np.ndarray]


def choose_places(rounds: Sequence[Round], split: Split, held_out_share: float, seed: int) -> Places:
    """Class-balanced fractions, fixed by `seed`.

    Raises:
      UserError: a fraction that leaves too few images to search a rate with.
    """
    n = len(split.labels)
    random = np.random.default_rng([seed, 1])
    train, held_out = [], []
    for one in rounds:
        places = np.arange(n) if one.fraction == 1 else few_places(split, one.fraction, seed)
        apart = np.zeros(0, np.int64)
        if one.search:
            if len(places) < 2:
                raise UserError(f"a label fraction of {one.fraction} leaves {len(places)} image to choose a rate with.")
            order = np.random.default_rng([seed, 2]).permutation(places)
            apart, places = np.split(order, [max(1, round(held_out_share * len(order)))])
        repeated = [random.permutation(places) for _ in range(-(-n // len(places)))]
        train.append(np.concatenate(repeated)[:n])
        held_out.append(apart)
    return Places(np.array(train, np.int32).reshape(len(rounds), n), held_out)


def init(recipe: Recipe, data: Any, key: Array) -> TrainState:
    """The start's encoder under a fresh linear layer, N(0, 0.01^2) with bias 0, no momentum, no accuracy yet."""
    start = jax.tree.map(jnp.copy, data["start"])  # the state's buffers are given away at every step
    kernel = HEAD_STD * jax.random.normal(key, (recipe.encoder.channels[-1], recipe.num_classes))
    params = {"encoder": start["params"], "head": {"kernel": kernel, "bias": jnp.zeros(recipe.num_classes)}}
    rounds = len(recipe.rounds)
    model_state = {
        "batch_stats": start["batch_stats"],
        "rate": jnp.asarray(recipe.rounds[0].rate if rounds else 0.0, jnp.float32),
        "accuracies": jnp.zeros(max(1, rounds)),  # Orbax saves no empty array
    }
    return TrainState(jnp.zeros((), jnp.int32), params, _optimizer(recipe).init(params), model_state)


def next_round(recipe: Recipe, state: TrainState, data: Any, place: int, accuracy: float, key: Array) -> TrainState:
    """The state at the start of round `place`, when the one before has ended with this accuracy."""
    accuracies = state.model_state["accuracies"]
    if place:
        accuracies = accuracies.at[place - 1].set(accuracy)
    fresh = init(recipe, data, key)
    rate = recipe.rounds[place].rate or best_rate(recipe.rounds, np.asarray(accuracies), place)
    model_state = fresh.model_state | {"rate": jnp.asarray(rate, jnp.float32), "accuracies": accuracies}
    return fresh.replace(step=state.step, model_state=model_state)


def best_rate(rounds: Sequence[Round], accuracies: Float[np.ndarray, " rounds"], place: int) -> float:
    """The rate of the best of the search rounds right before `place`, of equals the first."""
    first = place
    while first and rounds[first - 1].search:
        first -= 1
    return rounds[first + int(np.argmax(accuracies[first:place]))].rate


def augment(recipe: Recipe, images: Array, key: Array) -> Array:
    """uint8 images, normalised, cropped out of a reflected border and perhaps mirrored."""
    images = normalize(images, recipe.mean, recipe.std)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(image_keys(key, len(images)))
    top, left = (uniform_integers(draws[:, i], 2 * recipe.padding + 1) for i in (0, 1))
    images = padded_crop(images, top, left, recipe.padding, "reflect")
    return flip_horizontal(images, draws[:, 2] < 0.5) if recipe.flip else images


def apply(recipe: Recipe, params: Any, batch_stats: Any, images: Array, train: bool) -> tuple[Array, Any]:
    """Logits, and the batch statistics after these images."""
    variables = {"params": params["encoder"], "batch_stats": batch_stats}
    if train:
        features, updated = recipe.encoder.module(train=True).apply(variables, images, mutable=["batch_stats"])
        batch_stats = updated["batch_stats"]
    else:
        features: Any = recipe.encoder.module().apply(variables, images)
    return features["pooled"] @ params["head"]["kernel"] + params["head"]["bias"][None], batch_stats


def train_step(
    recipe: Recipe, frozen: bool, state: TrainState, data: dict[str, Any], batch: Int[Array, " B"], key: Array
) -> tuple[TrainState, Sums]:
    """One step of SGD on the training images of these indices; its rate falls from the round's to 0 by a cosine."""
    images, labels = augment(recipe, data["images"][batch], key), data["labels"][batch]

    def loss(params):
        logits, batch_stats = apply(recipe, params, state.model_state["batch_stats"], images, not frozen)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), (logits, batch_stats)

    (value, (logits, batch_stats)), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    if frozen:
        gradients = gradients | {"encoder": jax.tree.map(jnp.zeros_like, gradients["encoder"])}
    else:
        gradients = jax.tree_util.tree_map_with_path(
            lambda path, g, p: g + recipe.weight_decay * p if path[-1].key == "kernel" else g, gradients, state.params
        )
    updates, opt_state = _optimizer(recipe).update(gradients, state.opt_state)
    done = (state.step % recipe.num_steps) / recipe.num_steps
    rate = state.model_state["rate"] * 0.5 * (1 + jnp.cos(jnp.pi * done))
    params = jax.tree.map(lambda p, update: p - rate * update, state.params, updates)
    state = state.replace(
        params=params, opt_state=opt_state, model_state=state.model_state | {"batch_stats": batch_stats}
    )
    count = jnp.asarray(len(labels))
    correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels)
    return state, {"loss": (value * count, count), "accuracy": (correct, count)}


def is_right(
    recipe: Recipe, state: TrainState, data: dict[str, Any], split: str, indices: Int[Array, " B"]
) -> Float[Array, " B"]:
    """1 for images of a split ("" or "test_") that are put into their class, else 0."""
    images = normalize(data[f"{split}images"][indices], recipe.mean, recipe.std)
    logits, _ = apply(recipe, state.params, state.model_state["batch_stats"], images, train=False)
    return (jnp.argmax(logits, axis=-1) == data[f"{split}labels"][indices]).astype(jnp.float32)


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
    return optax.trace(recipe.momentum, nesterov=recipe.momentum > 0)
