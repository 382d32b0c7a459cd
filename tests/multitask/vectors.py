"""Pre-training on vectors: the networks of the golden joint step, small enough to compile in a second."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from common import optim
from multitask.experiment import only_kernels
from multitask.losses import cross_entropy
from multitask.metric_regularizer import make_regularizer
from multitask.models import Encoder, Projection
from multitask.student import Network
from multitask.tasks import Task
from multitask.tasks.task import View, linear_head
from multitask.train import Ensemble, Recipe
from tests.multitask import golden

ARRAYS = golden.load("joint_step")
NAMES = ("rec", "rot", "clu")
ROWS = 6  # images of a step


class Tanh(nn.Module):
    """tanh(x w + b)."""

    @nn.compact
    def __call__(self, x):
        return {"pooled": jnp.tanh(nn.Dense(12, name="enc")(x))}


def _view(key, images, rows):
    return View(rows["view"], rows.get("target", images))


def _reconstruction(outputs, target, critic):
    return jnp.mean((outputs - target) ** 2), {}


def _classification(outputs, target, critic):
    return cross_entropy(outputs, target).mean(), {}


def _rows(name):
    view = jnp.asarray(ARRAYS[f"view_{name}"].reshape(-1, 10))
    return {"view": view} | ({"target": jnp.asarray(ARRAYS[f"y_{name}"].reshape(-1))} if name != "rec" else {})


TASKS = (
    Task("rec", linear_head(10), _view, _reconstruction, regression=True, memory=lambda labels: _rows("rec")),
    Task("rot", linear_head(4), _view, _classification, memory=lambda labels: _rows("rot")),
    Task("clu", linear_head(5), _view, _classification, memory=lambda labels: _rows("clu")),
)
DATA = {"images": jnp.asarray(ARRAYS["x"].reshape(-1, 10)), "labels": jnp.zeros(24, jnp.int32)}


def optimizer(**fields: Any):
    sgd = {
        **{"name": "sgd", "clip_norm": 0.0, "nesterov": False, "schedule": "constant"},
        **{name: float(ARRAYS[name]) for name in ("weight_decay", "momentum")},
        "learning_rate": float(ARRAYS["lr"]),
    }
    return optim.make_optimizer(ConfigDict(sgd | fields), only_kernels)


def recipe(**fields: Any) -> Recipe:
    """That of the golden step, with other fields of Recipe, `tasks` or `ensemble` (fields of it) if wanted."""
    names = fields.pop("tasks", NAMES)
    tasks = tuple(task for task in TASKS if task.name in names)
    ensemble = Ensemble(**{"mode": "param_ema", "alpha": float(ARRAYS["alpha"]), **fields.pop("ensemble", {})})
    encoder = Encoder("tanh", (12,) * 4, (1,) * 4, lambda train=False: Tanh())
    kind = fields.pop("kind", "npair")
    made = Recipe(
        network=Network(encoder, tasks, Projection(8, hidden=False), "joint", False),
        optimizer=optimizer(**fields.pop("optimizer", {})),
        augment=lambda key, images: images,
        regularizer=make_regularizer(kind, float(ARRAYS["tau"]), 0.2, "all", 0.0),
        ensemble=ensemble,
        task_weights=(1 / len(tasks),) * len(tasks),
        beta_max=float(ARRAYS["beta"]),
        ramp_steps=0,
        weighting="uniform",
        lambdas=tuple(float(ARRAYS["lam"][NAMES.index(task.name)]) for task in tasks),
        dwa_temperature=2.0,
        gradient="sum",
        steps_per_epoch=4,
    )
    return made._replace(**fields)


def params_of(prefix: str) -> dict[str, Any]:
    """The golden parameters `prefix` ("init", "final", ...) as the tree that is trained."""

    def dense(name):
        return {"kernel": jnp.asarray(ARRAYS[f"{prefix}_{name}_w"]), "bias": jnp.asarray(ARRAYS[f"{prefix}_{name}_b"])}

    return {
        "backbone": {"enc": dense("enc")},
        "heads": {name: {"Dense_0": dense(name)} for name in NAMES},
        "projections": {name: {"Dense_0": {"kernel": jnp.asarray(ARRAYS[f"{prefix}_proj_{name}"])}} for name in NAMES},
    }


def batch(step: int) -> jax.Array:
    return jnp.arange(ROWS) + ROWS * (step % 4)
