"""Two networks that start together and teach each other (DML): a step of the teacher, then one of the student.

The state's params are {"student": {"student", "adapters"}, "teacher": the same}, each side with its own optimiser.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from common.experiment import TrainState
from common.metrics import Sums
from distill import models, train
from distill.method import Outputs, Variables, frozen
from distill.train import Recipe

SIDES = ("student", "teacher")


def init(
    recipe: Recipe, image_shape: tuple[int, ...], shapes: tuple[Outputs, Any], data: Any, key: Array
) -> TrainState:
    """Both networks fresh."""
    sides = {
        side: train.init(one_side(recipe, side), image_shape, shapes, data, own)
        for side, own in zip(SIDES, jax.random.split(key), strict=True)
    }
    return TrainState(jnp.zeros((), jnp.int32), *(pick(sides, name) for name in ("params", "opt_state", "model_state")))


def one_side(recipe: Recipe, side: str) -> Recipe:
    """The recipe in which this side is the student."""
    return recipe if side == "student" else recipe._replace(student=recipe.teacher, teacher=recipe.student)


def pick(sides: dict[str, TrainState], name: str) -> dict[str, Any]:
    """This part of both sides' states."""
    return {side: getattr(state, name) for side, state in sides.items()}


def of_side(state: TrainState, side: str) -> TrainState:
    """The state of one side, as `train.evaluate` reads it."""
    return TrainState(state.step, state.params[side], state.opt_state[side], state.model_state[side])


def train_step(
    recipe: Recipe, state: TrainState, data: Any, batch: Int[Array, " B"], key: Array
) -> tuple[TrainState, Sums]:
    """The teacher learns from labels and the student, then the student from labels and the new teacher."""
    of_images, *of_sides = jax.random.split(key, 1 + 2 * len(SIDES))
    images, labels = train.gather(recipe, data, batch, of_images)
    sides = {side: of_side(state, side) for side in SIDES}
    sums: Sums = {}
    for side, other, own, theirs in (("teacher", "student", *of_sides[:2]), ("student", "teacher", *of_sides[2:])):
        peer = Variables(sides[other].params["student"], sides[other].model_state["student"])
        # In training mode, as the peer itself learns; its statistics are its own step's to change.
        outputs, _ = models.run(one_side(recipe, other).student, peer, images, theirs)
        sides[side], found = _step(one_side(recipe, side), sides[side], images, labels, outputs, own)
        sums |= found if side == "student" else {f"teacher_{name}": pair for name, pair in found.items()}
    parts = {name: pick(sides, name) for name in ("params", "opt_state", "model_state")}
    return state.replace(**parts), sums


def _step(
    recipe: Recipe, state: TrainState, images: Array, labels: Array, peer: Outputs, key: Array
) -> tuple[TrainState, Sums]:
    knowledge = frozen(recipe.method.knowledge(peer))

    def losses(params):
        variables = Variables(params["student"], state.model_state["student"])
        outputs, batch_stats = models.run(recipe.student, variables, images, key)
        adapters = Variables(params["adapters"], state.model_state["adapters"])
        terms, adapter_state = recipe.method.loss(Variables({}, {}), adapters, outputs, knowledge, labels)
        model_state = {"student": batch_stats, "adapters": adapter_state}
        return (train.cross_entropy(outputs.logits, labels), terms), (outputs.logits, model_state)

    (task, terms), pull, (logits, model_state) = jax.vjp(losses, state.params, has_aux=True)
    gradients = train.combine(recipe, state.params, pull, task, terms, jnp.ones(()))
    state = train.apply_gradients(state, recipe.optimizer, gradients).replace(model_state=model_state)
    return state, train.metrics(logits, labels, task, terms)
