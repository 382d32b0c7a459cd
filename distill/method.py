"""What a distillation method is: one frozen value of pure functions, made by the function `make` of its own file.

A file `baselines/<name>.py` or `methods/<name>.py` holds `make(**options) -> Method`; its options are the config group
`options`, its name the config field `method`. Nothing else has to know it. A run goes through up to four phases:

    teacher          cross entropy                               none if a checkpoint is given, or if mutual
    modules          `module_loss` on the teacher alone          only of methods that have one; then they are frozen
    initialisation   `loss` alone (and weight decay)             only with config.stages = "two_stage"
    student          cross entropy, and `loss`                   `loss` only with config.stages = "joint"

Modules are what is trained on the teacher in a phase of its own and frozen after it (attention networks, PCA, a
paraphraser); adapters are what is trained together with the student (1x1 convolutions, a translator). Both are
`Variables`: `params` are trained by gradients, `state` is what a step hands to the next (BatchNorm statistics, PCA).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int

PyTree = Any


class Outputs(NamedTuple):
    """What a network says about a batch.

    Attributes:
      logits: [B, K].
      maps: the sensing points in order of depth, each [B, H, W, C], after their ReLU.
      raw: the same points before the ReLU; where a network has none there, the same arrays.
      features: [B, D], what the last fully connected layer reads.
    """

    logits: Any
    maps: tuple[Any, ...]
    raw: tuple[Any, ...]
    features: Any


class Variables(NamedTuple):
    """Arrays of modules or adapters, nested dicts both."""

    params: PyTree
    state: PyTree


NOTHING = Variables({}, {})
Terms = dict[str, Float[Array, ""]]


def all_of(teacher: Outputs) -> PyTree:
    """Knowledge that leaves nothing out."""
    return teacher


def no_modules(key: Array, knowledge: PyTree) -> Variables:
    """For methods without modules."""
    del key, knowledge
    return NOTHING


def no_adapters(key: Array, student: Outputs, knowledge: PyTree) -> Variables:
    """For methods without adapters."""
    del key, student, knowledge
    return NOTHING


@dataclass(frozen=True)
class Method:
    """A distillation method.

    All functions are pure and traced; shapes are static. Gradients are stopped at the knowledge and at the modules by
    the caller. What cannot be paired (maps of other sizes, too few points) is refused by `init_modules` or
    `init_adapters` with a UserError; they may look at shapes only, since they are also shape-evaluated.

    Attributes:
      loss: (modules, adapters, student, knowledge, labels [B]) -> ({term: scalar}, new state of the adapters). Every
        term carries its weight already; their sum is the distillation loss. Adapters are in training mode.
      knowledge: teacher's outputs -> what `loss` and `module_loss` need of the teacher: a tree whose every leaf has the
        batch in front and depends on its own image alone (maps, singular vectors, logits ...), so that it can be
        computed once for all images and cached where nothing is augmented.
      init_modules: (key, knowledge) -> modules.
      init_adapters: (key, student, knowledge) -> adapters.
      module_loss: (modules, knowledge, key) -> (objective with its own weight decay, new state, {metric: scalar});
        None: there is no phase of modules. Only `modules.params` are trained; the state is carried from step to step.
      cross_entropy_weight: of cross entropy beside `loss`.
      merged: per variable of the student, every term's gradient is clipped to the norm of the task's and added
        (`multitask.merge_gradients`), with the ramp over epochs; False: the terms are added to the loss, as
        they are in the initialisation phase. The adapters always get the plain gradient of the terms.
      mutual: student and teacher both start from scratch and teach each other (DML): `loss` is called once with each
        of them as the student, and `knowledge` must fit both.
      figures: (modules, knowledge, images uint8 [n, H, W, c], labels [n], folder) -> {result: number}: what is drawn
        from the trained modules and test images at the end of the run; host code. None: nothing.
    """

    loss: Callable[[Variables, Variables, Outputs, PyTree, Int[Array, " B"]], tuple[Terms, PyTree]]
    knowledge: Callable[[Outputs], PyTree] = all_of
    init_modules: Callable[[Array, PyTree], Variables] = no_modules
    init_adapters: Callable[[Array, Outputs, PyTree], Variables] = no_adapters
    module_loss: Callable[[Variables, PyTree, Array], tuple[Float[Array, ""], PyTree, Terms]] | None = None
    cross_entropy_weight: float = 1.0
    merged: bool = False
    mutual: bool = False
    figures: Callable[[Variables, PyTree, Any, Any, Path], Mapping[str, float]] | None = None


def frozen(tree: PyTree) -> PyTree:
    """The tree without gradients."""
    return jax.tree.map(jax.lax.stop_gradient, tree)
