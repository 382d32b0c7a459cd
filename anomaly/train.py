"""Training step, memory bank and scoring as pure functions of the state and image indices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Shaped, UInt8

from anomaly import augment, hypersphere, memory_bank, scoring
from anomaly.descriptor import PatchDescriptor, Taps, pool_taps
from common import rng
from common.experiment import TrainState, apply_gradients
from common.metrics import Sums
from common.models.backbones import Backbone, extract_taps


class Recipe(NamedTuple):
    """What is fixed before compilation."""

    backbone: Backbone
    divide_by_channels: bool  # see descriptor.pool_taps
    network: PatchDescriptor
    optimizer: optax.GradientTransformation
    neighbours: int  # K
    repelled: int  # J
    nu: float
    alpha: float
    initial_radius: float
    learn_radius: bool
    size: tuple[int, int]  # of the network's input
    chunk: int  # patches whose distances exist at once, 0 = chosen
    tap_shapes: tuple[tuple[int, int, int], ...]
    bank_rows: int  # M
    cached: bool  # the data hold pooled taps, not images
    rotate_and_crop: bool  # RD-MVTec: training images are turned and cropped anew whenever they are used


def init(recipe: Recipe, data: Any, key: Array) -> TrainState:
    """Fresh descriptor and radius; the frozen backbone and an empty bank, so that a checkpoint can score images."""
    taps = tuple(jnp.zeros((1, *shape)) for shape in recipe.tap_shapes)
    params = {
        "descriptor": recipe.network.init(key, taps)["params"],
        "radius": jnp.asarray(recipe.initial_radius, jnp.float32),
    }
    model_state = {"backbone": data["backbone"], "bank": jnp.zeros((recipe.bank_rows, recipe.network.width))}
    return TrainState(jnp.zeros((), jnp.int32), params, recipe.optimizer.init(params), model_state)


def extract(recipe: Recipe, backbone: Any, images: UInt8[Array, "B H W 3"]) -> Taps:
    """Pooled taps of images; `backbone`: the frozen network's variables."""
    taps = extract_taps(recipe.backbone, backbone, images)
    return pool_taps([taps[name] for name in recipe.backbone.taps], recipe.divide_by_channels)


def gather(recipe: Recipe, backbone: Any, source: Any, indices: Int[Array, " B"], key: Array | None = None) -> Taps:
    """Pooled taps of some of the images of `source`, which holds images or, if cached, pooled taps.

    `key`: of the random turns and crops of RD-MVTec; None where the images have been turned already.
    """
    rows = jax.tree.map(lambda leaf: leaf[indices], source)
    if recipe.cached:
        return rows
    if recipe.rotate_and_crop and key is not None:
        keys = jax.random.split(key, len(indices))
        rows = augment.random_rotate_and_crop(rows, keys, *recipe.size)
    return extract(recipe, backbone, rows)


def describe(recipe: Recipe, params: Any, pooled: Taps) -> Float[Array, "B N D"]:
    """Descriptors of all patches, positions in row-major order."""
    phi: Any = recipe.network.apply({"params": params["descriptor"]}, pooled)
    return phi.reshape(phi.shape[0], -1, phi.shape[-1])


def sample_batch(
    seed: Int[Array, ""] | Shaped[Array, ""], step: Int[Array, ""], count: int, batch_size: int, drop_last: bool
) -> Int[Array, " B"]:
    """Image indices of one step: each epoch is a permutation of its own, a pure function of seed and step.

    Batches run on over the end of an epoch, so that every image is used equally often; with `drop_last` the rest of an
    epoch that fills no batch is left out (official code).
    """

    def permutation(epoch):
        return jax.random.permutation(rng.stream(seed, "shuffle", epoch), count)

    if drop_last and count >= batch_size:
        steps = count // batch_size
        places = (step % steps) * batch_size + jnp.arange(batch_size)
        return permutation(step // steps)[places]
    places = step * batch_size + jnp.arange(batch_size)
    if batch_size > count:  # fewer images than a batch holds: one order, repeated
        return permutation(0)[places % count]
    first = (step * batch_size) // count
    orders = jnp.concatenate([permutation(first), permutation(first + 1)])
    return orders[places - first * count]


def train_step(
    recipe: Recipe, state: TrainState, data: Any, batch: Int[Array, " B"], key: Array
) -> tuple[TrainState, Sums]:
    """One step on the coupled-hypersphere loss; only descriptor and radius change."""
    pooled = gather(recipe, state.model_state["backbone"], data["train"], batch, key)

    def loss(params):
        nearest: Any = hypersphere.nearest_sq_distances(
            describe(recipe, params, pooled),
            state.model_state["bank"],
            recipe.neighbours + recipe.repelled,
            recipe.chunk,
        )
        parts = hypersphere.coupled_hypersphere_loss(
            nearest, params["radius"], recipe.neighbours, recipe.nu, recipe.alpha
        )
        return parts.total, parts

    gradients, parts = jax.grad(loss, has_aux=True)(state.params)
    new = apply_gradients(state, recipe.optimizer, gradients)
    if not recipe.learn_radius:
        new = new.replace(params=new.params | {"radius": state.params["radius"]})
    size = jnp.asarray(batch.shape[0])
    metrics = {
        "loss": (parts.total * size, size),
        "attraction": (parts.attraction * size, size),
        "repulsion": (parts.repulsion * size, size),
        "radius": (new.params["radius"], jnp.asarray(1)),
    }
    return new, metrics


class Scores(NamedTuple):
    """Smoothed anomaly maps at the size of the network's input, and their maxima."""

    maps: Float[Array, "B H W"]
    images: Float[Array, " B"]


def score_pooled(recipe: Recipe, params: Any, bank: Float[Array, "M D"], pooled: Taps) -> Scores:
    """Soft-min scores of all patches, enlarged and smoothed."""
    nearest: Any = hypersphere.nearest_sq_distances(
        describe(recipe, params, pooled), bank, recipe.neighbours, recipe.chunk
    )
    patches = scoring.softmin_score(nearest).reshape(-1, *recipe.tap_shapes[0][:2])
    maps = scoring.anomaly_maps(patches, *recipe.size)
    return Scores(maps, scoring.image_scores(maps))


def score_split(recipe: Recipe, state: TrainState, data: Any, split: str, indices: Int[Array, " b"]) -> Scores:
    """Scores of the images `indices` of "train" or "test"; training images of RD-MVTec get fixed turns."""
    key = rng.stream(0, "score") if split == "train" else None
    pooled = gather(recipe, state.model_state["backbone"], data[split], indices, key)
    return score_pooled(recipe, state.params, state.model_state["bank"], pooled)


def score_images(recipe: Recipe, params: Any, model_state: Any, images: UInt8[Array, "B H W 3"]) -> Scores:
    """Scores of images that have the network's input size."""
    pooled = extract(recipe, model_state["backbone"], images)
    return score_pooled(recipe, params, model_state["bank"], pooled)


def sum_taps(
    recipe: Recipe, backbone: Any, data: Any, indices: Int[Array, " B"], counted: Float[Array, " B"], key: Array
) -> tuple[Array, ...]:
    """Σ over the training images `indices` of their pooled taps, each times `counted` (1, or 0 for padding)."""
    pooled = gather(recipe, backbone, data["train"], indices, key)
    return tuple(jnp.einsum("b,bhwc->hwc", counted, tap, precision=jax.lax.Precision.HIGHEST) for tap in pooled)


def bank_of_mean(recipe: Recipe, params: Any, mean_taps: tuple[Array, ...]) -> Float[Array, "M D"]:
    """φ(mean over images) = mean over images of φ, because φ is affine: every image goes through φ at once."""
    return describe(recipe, params, tuple(tap[None] for tap in mean_taps))[0]


def update_nearest_ema(
    recipe: Recipe,
    state: TrainState,
    data: Any,
    bank: Float[Array, "M D"],
    index: Int[Array, "1"],
    coefficient: Float[Array, ""],
    key: Array,
) -> Float[Array, "M D"]:
    """One more training image for the bank `nearest_ema`."""
    pooled = gather(recipe, state.model_state["backbone"], data["train"], index, key)
    return memory_bank.nearest_ema(bank, describe(recipe, state.params, pooled)[0], coefficient)
