"""Train steps and evaluation, as pure functions of the state, the data and image indices.

The state's params are {"student", "adapters"} and its model_state holds the same names; in the phase of the teacher the
student is the teacher. Frozen networks are data: {"teacher", "modules", "knowledge"}.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from common.augment import normalize
from common.experiment import TrainState, apply_gradients
from common.metrics import Sums
from distill import models, multitask
from distill.augmentation import Augmentation, augment
from distill.method import Method, Outputs, Variables, frozen
from distill.models import Network

PHASES = ("teacher", "modules", "initialisation", "student")
MERGE_RULES = ("toolbox", "eccv", "tf2_port")


class Recipe(NamedTuple):
    """What is fixed before compilation."""

    student: Network
    teacher: Network
    method: Method
    optimizer: optax.GradientTransformation
    augmentation: Augmentation
    weight_decay: float
    decay: str  # "all" parameters or "kernels"
    cross_entropy: float  # weight; 0 in the initialisation phase
    distils: bool  # whether the method's loss acts in this phase
    merge_rule: str  # one of MERGE_RULES; see `merge_ramp` and `combine`
    num_images: int  # an epoch, for the ramp
    cached: bool  # the data hold the knowledge of every training image
    phase: int  # its number among PHASES: phases of one seed start from different weights


def gather(recipe: Recipe, data: Any, batch: Int[Array, " B"], key: Array) -> tuple[Array, Array]:
    """Augmented images and labels of these training images."""
    return augment(data["images"][batch], key, recipe.augmentation), data["labels"][batch]


def knowledge_of(recipe: Recipe, data: Any, batch: Int[Array, " B"], images: Float[Array, "B H W c"]) -> Any:
    """What the teacher knows about the images, in inference mode or from the cache."""
    if recipe.cached:
        return jax.tree.map(lambda leaf: leaf[batch], data["knowledge"])
    return frozen(recipe.method.knowledge(models.run(recipe.teacher, data["teacher"], images)[0]))


def cross_entropy(logits: Float[Array, "B K"], labels: Int[Array, " B"]) -> Float[Array, ""]:
    """Batch mean."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def init(
    recipe: Recipe, image_shape: tuple[int, ...], shapes: tuple[Outputs, Any], data: Any, key: Array
) -> TrainState:
    """A fresh student, or the one that the initialisation phase left; fresh adapters.

    `shapes`: of the student's outputs and of the teacher's knowledge, which adapters are made for.
    """
    of_student, of_adapters = jax.random.split(jax.random.fold_in(key, recipe.phase))
    student = data["start"] if "start" in data else models.init(recipe.student, of_student, image_shape)
    student = jax.tree.map(jnp.copy, student)  # the state is donated step by step, the data are not
    adapters = recipe.method.init_adapters(of_adapters, *shapes) if recipe.distils else Variables({}, {})
    params, model_state = ({"student": s, "adapters": a} for s, a in zip(student, adapters, strict=True))
    return TrainState(jnp.zeros((), jnp.int32), params, recipe.optimizer.init(params), model_state)


def train_step(
    recipe: Recipe, state: TrainState, data: Any, batch: Int[Array, " B"], key: Array
) -> tuple[TrainState, Sums]:
    """One step of the student on the training images of these indices."""
    of_images, of_dropout = jax.random.split(key)
    images, labels = gather(recipe, data, batch, of_images)
    knowledge = knowledge_of(recipe, data, batch, images) if recipe.distils else ()
    modules = frozen(data["modules"])

    def losses(params):
        student = Variables(params["student"], state.model_state["student"])
        outputs, batch_stats = models.run(recipe.student, student, images, of_dropout)
        terms, adapter_state = {}, state.model_state["adapters"]
        if recipe.distils:
            adapters = Variables(params["adapters"], adapter_state)
            terms, adapter_state = recipe.method.loss(modules, adapters, outputs, knowledge, labels)
        model_state = {"student": batch_stats, "adapters": adapter_state}
        return (cross_entropy(outputs.logits, labels), terms), (outputs.logits, model_state)

    (task, terms), pull, (logits, model_state) = jax.vjp(losses, state.params, has_aux=True)
    ramp = merge_ramp(recipe, state.step * batch.shape[0] // recipe.num_images)
    gradients = combine(recipe, state.params, pull, task, terms, ramp)
    state = apply_gradients(state, recipe.optimizer, gradients).replace(model_state=model_state)
    return state, metrics(logits, labels, task, terms)


def combine(recipe: Recipe, params: Any, pull: Any, task: Array, terms: dict[str, Array], ramp: Array) -> Any:
    """Gradients of cross entropy, terms and weight decay, added or merged.

    `pull`: cotangents of (cross entropy, terms) -> gradients of the parameters, from one forward pass.
    """
    decay = decay_gradients(recipe, params)
    weight = jnp.full_like(task, recipe.cross_entropy)
    if not (recipe.distils and recipe.method.merged and recipe.cross_entropy):  # alone: nothing to merge with
        (gradients,) = pull((weight, jax.tree.map(jnp.ones_like, terms)))
        return jax.tree.map(jnp.add, gradients, decay)
    nothing = jax.tree.map(jnp.zeros_like, terms)
    (of_task,) = pull((weight, nothing))
    of_terms = [pull((jnp.zeros_like(task), nothing | {name: jnp.ones_like(terms[name])}))[0] for name in terms]
    student = [tree["student"] for tree in (of_task, decay, *of_terms)]
    reference = "task_and_decay" if recipe.merge_rule == "eccv" else "task"
    merged = multitask.merge_gradients(student[0], student[1], student[2:], ramp, reference)
    plain = jax.tree.map(lambda *leaves: sum(leaves), decay["adapters"], *(tree["adapters"] for tree in of_terms))
    return {"student": merged, "adapters": plain}


def merge_ramp(recipe: Recipe, epoch: Int[Array, ""]) -> Float[Array, ""]:
    """How long a merged gradient may be in this epoch, relative to the task's."""
    if recipe.merge_rule == "tf2_port":
        return jnp.ones(())
    return multitask.ramp(epoch, saturate=recipe.merge_rule == "toolbox")


def decay_gradients(recipe: Recipe, params: Any) -> Any:
    """weight_decay times the parameters that decay, 0 for the others."""

    def of_leaf(path: Any, leaf: Array) -> Array:
        return recipe.weight_decay * leaf if recipe.decay == "all" or path[-1].key == "kernel" else jnp.zeros_like(leaf)

    return jax.tree_util.tree_map_with_path(of_leaf, params)


def metrics(logits: Array, labels: Array, task: Array, terms: dict[str, Array]) -> Sums:
    """Loss, its parts, and accuracy."""
    count = jnp.asarray(labels.shape[0])
    values = {"cross_entropy": task, "loss": task + sum(terms.values())} | terms
    sums: Sums = {name: (value * count, count) for name, value in values.items()}
    return sums | {"accuracy": (jnp.sum(jnp.argmax(logits, axis=-1) == labels), count)}


def init_modules(recipe: Recipe, shapes: tuple[Outputs, Any], data: Any, key: Array) -> TrainState:
    """Fresh modules of the method."""
    modules = recipe.method.init_modules(jax.random.fold_in(key, recipe.phase), shapes[1])
    optimizer = recipe.optimizer.init(modules.params)
    return TrainState(jnp.zeros((), jnp.int32), modules.params, optimizer, modules.state)


def module_step(
    recipe: Recipe, state: TrainState, data: Any, batch: Int[Array, " B"], key: Array
) -> tuple[TrainState, Sums]:
    """One step of the modules on the teacher's knowledge; there is no student."""
    of_images, of_modules = jax.random.split(key)
    images, _ = gather(recipe, data, batch, of_images)
    knowledge = knowledge_of(recipe, data, batch, images)

    def objective(params):
        value, model_state, parts = module_loss(recipe, Variables(params, state.model_state), knowledge, of_modules)
        return value, (model_state, parts)

    (value, (model_state, parts)), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
    state = apply_gradients(state, recipe.optimizer, gradients).replace(model_state=model_state)
    count = jnp.asarray(batch.shape[0])
    return state, {name: (part * count, count) for name, part in {**parts, "loss": value}.items()}


def module_loss(recipe: Recipe, modules: Variables, knowledge: Any, key: Array) -> tuple[Array, Any, dict[str, Array]]:
    """The method's loss of its modules, which it must have."""
    if recipe.method.module_loss is None:
        raise ValueError("This method has no modules to train.")
    return recipe.method.module_loss(modules, knowledge, key)


def predict(network: Network, augmentation: Augmentation, variables: Variables, images: Array) -> Outputs:
    """What the network says about uint8 images [B, H, W, c], in inference mode."""
    return models.run(network, variables, normalize(images, augmentation.mean, augmentation.std))[0]


def evaluate(recipe: Recipe, state: TrainState, data: Any, indices: Int[Array, " B"]) -> dict[str, Float[Array, " B"]]:
    """Accuracy and cross entropy of each of these held-out images."""
    variables = Variables(state.params["student"], state.model_state["student"])
    logits = predict(recipe.student, recipe.augmentation, variables, data["held_out_images"][indices]).logits
    return score(logits, data["held_out_labels"][indices])


def score(logits: Float[Array, "B K"], labels: Int[Array, " B"]) -> dict[str, Float[Array, " B"]]:
    """Accuracy and cross entropy, image by image."""
    correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return {"accuracy": correct, "loss": optax.softmax_cross_entropy_with_integer_labels(logits, labels)}
