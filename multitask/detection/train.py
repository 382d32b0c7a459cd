"""Train step and predictions of a detector, as pure functions of the state, the data and image indices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from common.augment import image_keys, normalize
from common.experiment import TrainState, apply_gradients
from common.metrics import Sums
from multitask.detection import augment, centernet, ssd
from multitask.detection.network import Detector


class Ssd(NamedTuple):
    """What an SSD head needs beside its network."""

    anchors: Float[Array, "A 4"]
    nms_threshold: float
    candidates: int


class Recipe(NamedTuple):
    """What is fixed before compilation."""

    network: Any  # train -> Detector
    optimizer: optax.GradientTransformation
    strength: augment.Strength
    num_classes: int
    cells: int  # a side of the finest map
    radius: str
    size_weight: float
    offset_weight: float
    max_detections: int
    ssd: Ssd | None  # None: CenterNet
    mean: tuple[float, ...]
    std: tuple[float, ...]


def init(recipe: Recipe, image_size: int, data: Any, key: Array) -> TrainState:
    """The encoder of `data["start"]`, a fresh neck and head, a fresh optimiser."""
    network: Detector = recipe.network()
    fresh: Any = network.init(key, jnp.zeros((1, image_size, image_size, 3)))
    start = jax.tree.map(jnp.copy, data["start"])  # the state's buffers are given away at every step
    params = {**fresh["params"], "encoder": start["params"]}
    batch_stats = {**fresh.get("batch_stats", {}), "encoder": start["batch_stats"]}
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, params, recipe.optimizer.init(params), {"batch_stats": batch_stats})


def loss(recipe: Recipe, outputs: Any, objects: augment.Objects) -> dict[str, Float[Array, ""]]:
    """The parts of the loss and their sum, "loss", of what the head gives for a batch."""
    if recipe.ssd is None:

        def targets_of(boxes: Array, labels: Array) -> centernet.Targets:
            return centernet.make_targets(boxes, labels, recipe.cells, recipe.num_classes, recipe.radius)

        targets = jax.vmap(targets_of)(objects.boxes, objects.labels)
        parts = centernet.losses(outputs, targets, recipe.size_weight, recipe.offset_weight)
        return {
            "heat_loss": parts.heat,
            "size_loss": parts.size,
            "offset_loss": parts.offset,
            "loss": parts.total,
        }
    offsets, logits = outputs
    match = jax.vmap(ssd.match, (None, 0, 0))(recipe.ssd.anchors, objects.boxes, objects.labels)
    found = ssd.losses(offsets, logits, match.classes, match.offsets)
    total = found.classification + found.localization
    return {"class_loss": found.classification, "box_loss": found.localization, "loss": total}


def train_step(
    recipe: Recipe, state: TrainState, data: dict[str, Any], batch: Int[Array, " B"], key: Array
) -> tuple[TrainState, Sums]:
    """One step on the training images of these indices."""
    images = normalize(data["images"][batch], recipe.mean, recipe.std)
    objects = augment.Objects(data["boxes"][batch], data["labels"][batch])
    images, objects = augment.augment(images, objects, image_keys(key, len(batch)), recipe.strength)

    def total(params):
        variables = {"params": params, "batch_stats": state.model_state["batch_stats"]}
        outputs, updated = recipe.network(train=True).apply(variables, images, mutable=["batch_stats"])
        parts = loss(recipe, outputs, objects)
        return parts["loss"], (parts, updated["batch_stats"])

    gradients, (parts, batch_stats) = jax.grad(total, has_aux=True)(state.params)
    state = apply_gradients(state, recipe.optimizer, gradients)
    state = state.replace(model_state={"batch_stats": batch_stats})
    return state, {name: (value, jnp.ones(())) for name, value in parts.items()}


def detect(recipe: Recipe, state: TrainState, images: Array) -> centernet.Detections:
    """The best detections of uint8 images [B, H, W, 3], boxes cut at the edges of the image, without a score
    threshold."""
    variables = {"params": state.params, "batch_stats": state.model_state["batch_stats"]}
    outputs: Any = recipe.network().apply(variables, normalize(images, recipe.mean, recipe.std))
    if recipe.ssd is None:
        found = centernet.decode(outputs, recipe.max_detections)
    else:
        anchors, threshold, candidates = recipe.ssd

        def of_image(offsets: Array, logits: Array) -> Any:
            return ssd.detect(offsets, logits, anchors, recipe.max_detections, threshold, candidates)

        found = centernet.Detections(*jax.vmap(of_image)(*outputs))
    labels = jnp.where(found.scores > 0, found.labels, -1)  # cells that are no peaks fill up the number asked for
    return found._replace(boxes=jnp.clip(found.boxes, 0.0, 1.0), labels=labels)
