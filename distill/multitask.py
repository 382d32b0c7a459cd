"""Merging the gradients of classification and distillation, tensor by tensor (KD-SVD, section 3.3; official codes).

Distillation must not drown the task: its gradient to each tensor is shortened to the length of the task's gradient to
the same tensor, times a ramp that rises over the first ten epochs.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

PyTree = Any
REFERENCES = ("task", "task_and_decay")
SATURATION = 1 - 1e-8  # of the toolbox: above it the ramp counts as 1


def ramp(
    epoch: Float[Array, "..."] | Integer[Array, "..."] | float | int, saturate: bool = True
) -> Float[Array, "..."]:
    """sigmoid(epoch): 0.5 in epoch 0, 0.73, 0.88, ...; epochs count from the end of the initialisation phase.

    Args:
      saturate: set to 1 above 1 - 1e-8, as the toolbox does; the ECCV code does not.
    """
    value = jax.nn.sigmoid(jnp.asarray(epoch, jnp.result_type(float)))
    return jnp.where(value > SATURATION, 1, value) if saturate else value


def clip_to_norm(gradient: Float[Array, "..."], norm: Float[Array, ""]) -> Float[Array, "..."]:
    """The gradient, shortened to the length `norm` if it is longer; 0 where both are 0."""
    longest = jnp.maximum(jnp.linalg.norm(gradient.ravel()), norm)
    return gradient * jnp.where(longest > 0, norm / jnp.where(longest > 0, longest, 1), 0)


def merge_gradients(
    task: PyTree,
    decay: PyTree,
    terms: Sequence[PyTree],
    ramp: Float[Array, ""] | float,
    reference: str = "task",
) -> PyTree:
    """g = task + decay + Σ clip(term, ramp · |reference|), for each tensor by itself.

    Args:
      task, decay: gradients of the cross-entropy and of the weight decay.
      terms: one gradient tree per distillation loss; each is clipped by itself (IEP has up to three).
      ramp: see `ramp`; 1 in the authors' later port.
      reference: "task" (toolbox), or "task_and_decay" (ECCV code).

    Raises ValueError for an unknown reference.
    """
    if reference not in REFERENCES:
        raise ValueError(f"the reference of merging is {reference!r}, but must be one of {', '.join(REFERENCES)}.")

    def merged(task: Array, decay: Array, *terms: Array) -> Array:
        main = task + decay
        norm = ramp * jnp.linalg.norm((task if reference == "task" else main).ravel())
        return main + sum(clip_to_norm(term, norm) for term in terms)

    return jax.tree.map(merged, task, decay, *terms)
