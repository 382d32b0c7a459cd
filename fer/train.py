"""The iteration of two updates and the evaluation, as pure functions of the state, the data and a batch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from common.augment import flip_horizontal, image_keys, normalize, padded_crop
from common.experiment import TrainState
from common.metrics import Sums
from fer import elim, grouping, losses, matching
from fer.models import Network

METHODS = ("elim", "plain", "penalty")
_CLIP_EPSILON = 1e-6


class Augmentation(NamedTuple):
    """`crop`: side of the part that is looked at, 0 for the whole picture; `mean`, `std` in [0, 1]."""

    crop: int
    crop_padding: int
    flip: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Recipe(NamedTuple):
    """What is fixed before compilation."""

    network: Network
    optimizer: optax.GradientTransformation  # gives steps at a learning rate of 1
    schedule: optax.Schedule  # of the iteration, not of the updates
    rate_factors: dict[str, float]  # of encoder, regressor and header
    augmentation: Augmentation
    categorical: bool
    method: str
    updates: int  # in an iteration: 2, or 1 for the plain regressor
    identities: int  # N, drawn in each iteration
    alignment: str
    top_k: int
    matching: matching.Options
    weight: float  # of the second update's loss
    warm_up: tuple[int, int]
    encoder_clip: float
    header_statistics: str  # "all": groups change the header's running statistics; "supervised_only"
    penalty: float
    guard: bool


class Batch(NamedTuple):
    """`labels`: valence and arousal, float [B, 2], or categories, int [B]."""

    images: Array  # uint8 [B, H, W, C]
    labels: Array
    identity: Int[Array, " B"]


class Running(NamedTuple):
    """What an update changes."""

    params: Any
    statistics: Any
    optimizer: Any


def init(recipe: Recipe, image_shape: tuple[int, int, int], data: Any, key: Array) -> TrainState:
    """Fresh parameters, running statistics and optimiser; the encoder's own are `data`'s where it brings any."""
    side = recipe.augmentation.crop or image_shape[0]
    variables: Any = recipe.network.init(key, jnp.zeros((1, side, side, image_shape[2])))
    encoder = data.get("encoder", {})
    params, statistics = (
        {**variables.get(kind, {}), **({"encoder": encoder[kind]} if kind in encoder else {})}
        for kind in ("params", "batch_stats")
    )
    return TrainState(jnp.zeros((), jnp.int32), params, recipe.optimizer.init(params), statistics)


def augment(images: Array, key: Array, spec: Augmentation) -> Float[Array, "B h w C"]:
    """Random crop and mirror image, normalised."""
    count, side = images.shape[:2]
    keys = image_keys(key, count)
    drawn = jax.vmap(lambda one: jax.random.uniform(one, (3,)))(keys)
    room = side - spec.crop if spec.crop else 2 * spec.crop_padding
    top, left = (jnp.floor(drawn[:, i] * (room + 1)).astype(jnp.int32) for i in (0, 1))
    if spec.crop:
        cut = lambda image, row, column: jax.lax.dynamic_slice(  # noqa: E731
            image, (row, column, 0), (spec.crop, spec.crop, images.shape[3])
        )
        images = jax.vmap(cut)(images, top, left)
    else:
        images = padded_crop(images, top, left, spec.crop_padding, "edge")
    return normalize(flip_horizontal(images, drawn[:, 2] < spec.flip), spec.mean, spec.std)


def centre(images: Array, spec: Augmentation) -> Float[Array, "B h w C"]:
    """The middle of the pictures, normalised: what is predicted from."""
    if spec.crop:
        start = (images.shape[1] - spec.crop) // 2
        images = images[:, start : start + spec.crop, start : start + spec.crop]
    return normalize(images, spec.mean, spec.std)


def run_latents(
    network: Network, params: Any, statistics: Any, images: Array, key: Array
) -> tuple[Float[Array, "B l"], Any]:
    """Latents in training, and the encoder's and regressor's running statistics after it."""
    outputs: Any = network.apply(
        {"params": params, "batch_stats": statistics}, images, True,
        method="latents", rngs={"dropout": key}, mutable=["batch_stats"],
    )  # fmt: skip
    latents, changed = outputs
    return latents, {**statistics, **changed.get("batch_stats", {})}


def run_header(
    network: Network, params: Any, statistics: Any, latents: Array, members: Array | None = None
) -> tuple[Float[Array, "B k"], Any]:
    """Scores in training, and the running statistics after it."""
    outputs: Any = network.apply(
        {"params": params, "batch_stats": statistics}, latents, True, members, method="scores", mutable=["batch_stats"]
    )
    scores, changed = outputs
    return scores, {**statistics, **changed["batch_stats"]}


def frame_losses(recipe: Recipe, scores: Array, labels: Array) -> Float[Array, " B"]:
    """What the groups' risks are means of."""
    return losses.cross_entropies(scores, labels) if recipe.categorical else losses.squared_errors(scores, labels)


def supervised_loss(
    recipe: Recipe, params: Any, statistics: Any, images: Array, batch: Batch, key: Array
) -> tuple[Float[Array, ""], tuple[Any, Array]]:
    """The loss on the whole batch; with it, the running statistics and the scores."""
    latents, statistics = run_latents(recipe.network, params, statistics, images, key)
    scores, statistics = run_header(recipe.network, params, statistics, latents)
    if recipe.categorical:
        value = jnp.mean(losses.cross_entropies(scores, batch.labels))
    else:
        value = losses.valence_arousal_loss(scores, batch.labels, recipe.guard)
    if recipe.method == "penalty":
        everybody = grouping.everybody(batch.identity)
        targets = jax.nn.one_hot(batch.labels, scores.shape[1]) if recipe.categorical else batch.labels
        outputs = jax.nn.softmax(scores) if recipe.categorical else scores
        value += recipe.penalty * losses.residual_penalty(outputs, targets, everybody)
    return value, (statistics, scores)


def matching_loss(
    recipe: Recipe,
    params: Any,
    statistics: Any,
    images: Array,
    batch: Batch,
    groups: grouping.Groups,
    key: Array,
) -> tuple[Float[Array, ""], tuple[Any, matching.Matching]]:
    """The identities' risks after matching, unweighted; with it, the running statistics and the matching."""
    latents, statistics = run_latents(recipe.network, params, statistics, images, key)
    value, after, found = header_risk(recipe, params, statistics, latents, batch.labels, groups)
    if recipe.header_statistics == "all":
        statistics = after
    return value, (statistics, found)


def header_risk(
    recipe: Recipe, params: Any, statistics: Any, latents: Array, labels: Array, groups: grouping.Groups
) -> tuple[Float[Array, ""], Any, matching.Matching]:
    """Match, shift, and sum the groups' risks: the plug-in, for the latents of any encoder."""
    found = matching.match(latents, groups, recipe.matching)
    shifted = elim.shifted_features(latents, found.shift, groups.members)
    scores, statistics = run_header(recipe.network, params, statistics, shifted, groups.members)
    return elim.identity_risk(frame_losses(recipe, scores, labels), groups.members), statistics, found


def draw_groups(recipe: Recipe, batch: Batch, key: Array) -> tuple[grouping.Groups, Int[Array, ""]]:
    """The reference and targets of this iteration, and how many identities there are."""
    of_identities, of_frames = jax.random.split(key)
    picked, count = grouping.draw_identities(of_identities, batch.identity, recipe.identities)
    groups = grouping.make_groups(batch.identity, picked)
    if recipe.alignment == "max_filling":
        groups = grouping.max_filling(groups)
    elif recipe.alignment == "gumbel":
        uniform = jax.random.uniform(of_frames, batch.identity.shape)
        groups = grouping.gumbel_top_k(groups, batch.labels, uniform, recipe.top_k)
    return groups, count


def update(recipe: Recipe, now: Running, gradients: Any, statistics: Any, step: Array) -> Running:
    """One step of the optimiser, at the iteration's learning rate times the module's factor."""
    steps: Any
    steps, state = recipe.optimizer.update(gradients, now.optimizer, now.params)
    rate = recipe.schedule(step)
    scaled = {
        module: jax.tree.map(lambda leaf, factor=recipe.rate_factors[module]: rate * factor * leaf, part)
        for module, part in steps.items()
    }
    return Running(optax.apply_updates(now.params, scaled), statistics, state)


def clip_encoder(gradients: Any, most: float) -> tuple[Any, Float[Array, ""]]:
    """The encoder's gradients scaled to a global norm of at most `most` (0: as they are), and the norm before."""
    norm = optax.tree.norm(gradients["encoder"])
    if not most:
        return gradients, norm
    scale = jnp.minimum(1.0, most / (norm + _CLIP_EPSILON))
    return {**gradients, "encoder": jax.tree.map(lambda leaf: scale * leaf, gradients["encoder"])}, norm


def supervised_update(
    recipe: Recipe, now: Running, images: Array, batch: Batch, key: Array, step: Array
) -> tuple[Running, Float[Array, ""], Array]:
    """(after the update, loss, scores)."""

    def loss(params):
        return supervised_loss(recipe, params, now.statistics, images, batch, key)

    (value, (statistics, scores)), gradients = jax.value_and_grad(loss, has_aux=True)(now.params)
    return update(recipe, now, gradients, statistics, step), value, scores


def matching_update(
    recipe: Recipe, now: Running, images: Array, batch: Batch, groups: grouping.Groups, key: Array, step: Array
) -> tuple[Running, dict[str, Array]]:
    """(after the update, risk, mean shift and the norm of the encoder's gradient)."""
    strength = recipe.weight * elim.warm_up(step, *recipe.warm_up)

    def loss(params):
        value, (statistics, found) = matching_loss(recipe, params, now.statistics, images, batch, groups, key)
        return strength * value, (statistics, found, value)

    (_, (statistics, found, value)), gradients = jax.value_and_grad(loss, has_aux=True)(now.params)
    gradients, norm = clip_encoder(gradients, recipe.encoder_clip)
    in_target = jnp.sum(groups.members[1:], axis=0) > 0
    shift = jnp.sum(jnp.where(in_target, found.shift, 0.0)) / jnp.maximum(jnp.sum(in_target), 1)
    told = {"identity_risk": value, "shift": shift, "encoder_gradient": norm}
    return update(recipe, now, gradients, statistics, step), told


def train_step(
    recipe: Recipe, second: bool, state: TrainState, data: Any, batch: Batch, key: Array
) -> tuple[TrainState, Sums]:
    """One iteration on one batch; `second`: with the second update, or before its warm-up without."""
    keys = jax.random.split(key, 4)
    images = augment(batch.images, keys[0], recipe.augmentation)
    now = Running(state.params, state.model_state, state.opt_state)
    now, loss, scores = supervised_update(recipe, now, images, batch, keys[1], state.step)
    told = {"loss": loss}
    if recipe.categorical:
        told["accuracy"] = jnp.mean(jnp.argmax(scores, axis=1) == batch.labels)
    else:
        told["mse"] = jnp.mean((scores - batch.labels) ** 2)
    if second and recipe.method == "elim":
        groups, count = draw_groups(recipe, batch, keys[2])
        after, more = matching_update(recipe, now, images, batch, groups, keys[3], state.step)
        # Nothing to match with fewer than two people in the batch: the state stays as it is.
        now = jax.tree.map(lambda new, old: jnp.where(count >= 2, new, old), after, now)
        told |= {name: jnp.where(count >= 2, value, 0.0) for name, value in more.items()}
    elif second:
        now, told["second_loss"], _ = supervised_update(recipe, now, images, batch, keys[3], state.step)
    state = state.replace(params=now.params, opt_state=now.optimizer, model_state=now.statistics)
    return state, {name: (value, jnp.ones(())) for name, value in told.items()}


def predict(recipe: Recipe, params: Any, statistics: Any, images: Array) -> dict[str, Array]:
    """Latents and scores (valence and arousal, or probabilities) of uint8 images [B, H, W, C]."""
    variables = {"params": params, "batch_stats": statistics}
    latents: Any = recipe.network.apply(variables, centre(images, recipe.augmentation), method="latents")
    scores: Any = recipe.network.apply(variables, latents, method="scores")
    return {"latents": latents, "scores": jax.nn.softmax(scores) if recipe.categorical else scores}


def evaluate(recipe: Recipe, state: TrainState, data: Any, batch: Array) -> dict[str, Array]:
    """Scores and latents of held-out frames: these places [b] in the data, or these pictures [b, H, W, C]."""
    images = data["held_out"][batch] if batch.ndim == 1 else batch
    return predict(recipe, state.params, state.model_state, images)


def count_parameters(params: Any) -> int:
    """All numbers that are trained."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
