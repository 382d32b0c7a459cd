"""Soft logits (Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015)."""

import jax
from jaxtyping import Array, Float

from common.errors import UserError
from distill.method import Method


def make(temperature: float, weight: float, square: bool) -> Method:
    """(1 - weight) cross entropy + weight KL.

    Args:
      temperature: T; 4 in the toolbox.
      weight: of the KL; 0.3 in the toolbox.
      square: times T squared, as the paper has it; the toolbox leaves it out.

    Raises:
      UserError: a temperature or weight that cannot be.
    """
    if temperature <= 0:
        raise UserError(f"config.options.temperature is {temperature}, but must be above 0.")
    if not 0 <= weight <= 1:
        raise UserError(f"config.options.weight is {weight}, but must lie in 0..1.")
    factor = weight * (temperature**2 if square else 1.0)

    def loss(modules, adapters, student, knowledge, labels):
        return {"soft_logits": factor * softened_kl(student.logits, knowledge, temperature)}, adapters.state

    return Method(loss, knowledge=lambda teacher: teacher.logits, cross_entropy_weight=1.0 - weight)


def softened_kl(
    student: Float[Array, "B K"], teacher: Float[Array, "B K"], temperature: float = 1.0
) -> Float[Array, ""]:
    """Batch mean of KL(softmax(teacher / T) || softmax(student / T))."""
    of_student, of_teacher = (jax.nn.log_softmax(logits / temperature) for logits in (student, teacher))
    return (jax.nn.softmax(teacher / temperature) * (of_teacher - of_student)).sum(-1).mean()
