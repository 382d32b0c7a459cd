"""What a pretext task is to the trainer, which knows nothing else about it."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
import optax
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from multitask.models import Encoder

Rows = dict[str, Any]  # a task's arrays, one entry per image of the data set (or of a batch)


class View(NamedTuple):
    """What the encoder sees for a task, and what the head must make of it."""

    images: Shaped[Array, "nv *shape"]  # the v views of an image stand together
    target: Any


class Context(NamedTuple):
    """What a task is made from."""

    config: ConfigDict
    encoder: Encoder
    mean: tuple[float, ...]  # of the normalisation, per channel in [0, 1]
    std: tuple[float, ...]
    num_classes: int  # of the labels, which only the task "supervised" may look at


@dataclasses.dataclass(frozen=True)
class Critic:
    """A network with an optimiser of its own that is trained against the encoder, one step before it.

    Attributes:
      init: key -> parameters.
      loss: (parameters, outputs of the task's head without their gradient, key) -> scalar.
    """

    init: Callable[[Array], Any]
    loss: Callable[[Any, Any, Array], Float[Array, ""]]
    optimizer: optax.GradientTransformation


@dataclasses.dataclass(frozen=True)
class Task:
    """A pretext task as pure functions and a head.

    Attributes:
      name: as in `config.tasks`.
      head: train -> module from the encoder's features of a view to outputs.
      view: (key, normalised images [n, H, W, C], the task's rows of these images) -> View.
      loss: (outputs, target, the critic's parameters or None) -> (scalar, {name: scalar} to be logged).
      num_views: v, views of each image.
      regression: whether uncertainty weighting takes its loss for a squared error.
      memory: labels [N] (-1: unknown) -> the task's rows at the start of training; None for a task without any.
      relabel: host code between steps, (features [N, C] of all images, rows, key) -> new rows; afterwards the head is
        initialised anew.
      report: (rows, labels [N]) -> {name: number} for the log, on the host.
    """

    name: str
    head: Callable[[bool], nn.Module]
    view: Callable[[Array, Array, Rows], View]
    loss: Callable[[Any, Any, Any], tuple[Float[Array, ""], dict[str, Array]]]
    num_views: int = 1
    regression: bool = False
    memory: Callable[[Array], Rows] | None = None
    relabel: Callable[[Array, Rows, Array], Rows] | None = None
    report: Callable[[Rows, np.ndarray], dict[str, float]] | None = None
    critic: Critic | None = None


class LinearHead(nn.Module):
    """A linear map of the pooled features; kernel N(0, 0.01²), bias 0."""

    outputs: int

    @nn.compact
    def __call__(self, features: dict[str, Array]) -> Float[Array, "n outputs"]:
        return nn.Dense(self.outputs, kernel_init=nn.initializers.normal(0.01))(features["pooled"])


def linear_head(outputs: int) -> Callable[[bool], nn.Module]:
    """`Task.head` of a linear head, which is the same in training and evaluation."""
    return lambda train: LinearHead(outputs)
