"""Averages over the course of training of weights, embeddings, or of what each task makes of the weights.

The name is the paper's (abstract); which average it means could not be read, so all readings are here, each a field.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from multitask.metric_regularizer import norm

MODES = ("param_ema", "feature_ema", "task_snapshot", "none")
BIAS_CORRECTIONS = ("warmup", "debias")
ORDERS = ("parallel", "sequential")
PyTree = Any


def warmup_decay(alpha: float | Array, updates: Int[Array, ""] | int) -> Float[Array, ""]:
    """α_t = min(α, 1 - 1/t) of update t = 1, 2, ...: an exact running mean until α is reached."""
    return jnp.minimum(jnp.asarray(alpha, float), 1 - 1 / jnp.asarray(updates, float))


def ema_update(average: PyTree, new: PyTree, alpha: float | Array) -> PyTree:
    """α average + (1 - α) new, leaf by leaf."""
    return jax.tree.map(lambda a, b: alpha * a + (1 - alpha) * b, average, new)


def debiased(average: PyTree, alpha: float | Array, updates: Int[Array, ""] | int) -> PyTree:
    """m / (1 - α^t) of an average that began at 0; t >= 1. Computed as -expm1(t log α): exact in float32."""
    weight = -jnp.expm1(jnp.asarray(updates, float) * jnp.log(jnp.asarray(alpha, float)))
    return jax.tree.map(lambda m: m / weight, average)


class Teacher(NamedTuple):
    """A weight-space ensemble: `average` as it is stored, and the weights to use."""

    average: PyTree
    weights: PyTree


def param_ema(
    average: PyTree, new: PyTree, alpha: float, updates: Int[Array, ""] | int, bias_correction: str
) -> Teacher:
    """Update t = 1, 2, ... of the moving average by the weights after optimiser step t [Tarvainen and Valpola 2017].

    "warmup": θ̄_t = α_t θ̄_{t-1} + (1 - α_t) θ_t; "debias": the average begins at 0 and is divided by 1 - α^t at use.
    """
    if bias_correction == "warmup":
        average = ema_update(average, new, warmup_decay(alpha, updates))
        return Teacher(average, average)
    average = ema_update(average, new, alpha)
    return Teacher(average, debiased(average, alpha, updates))


class Memory(NamedTuple):
    """Temporal ensemble of embeddings [Laine and Aila 2017]: sums that began at 0, and how often each was updated."""

    features: Float[Array, "N K D"]
    counts: Int[Array, "N K"]


class Targets(NamedTuple):
    """Anchors, unit rows or 0 where an image has no embedding yet, and which have one."""

    anchors: Float[Array, "n D"]
    valid: Bool[Array, " n"]


def feature_memory_init(num_images: int, num_tasks: int, dim: int) -> Memory:
    """Nothing seen yet."""
    return Memory(jnp.zeros((num_images, num_tasks, dim)), jnp.zeros((num_images, num_tasks), jnp.int32))


def corrected(memory: Memory, alpha: float | Array) -> Float[Array, "N K D"]:
    """M / (1 - α^max(c, 1)): counters differ where tasks take turns, so the bias does not cancel in the norm."""
    updates = jnp.maximum(memory.counts, 1).astype(memory.features.dtype)
    return memory.features / -jnp.expm1(updates * jnp.log(jnp.asarray(alpha, float)))[..., None]


def feature_memory_read(memory: Memory, alpha: float | Array, task_weights: Float[Array, " K"]) -> Targets:
    """Anchors e_i = norm(Σ_k w'_k M̂_ik), w' the task weights among the tasks that have seen image i."""
    seen = memory.counts > 0
    weights = jnp.where(seen, task_weights[None], 0.0)
    total = jnp.sum(weights, axis=1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, 1.0)
    valid = jnp.any(seen, axis=1)
    mixed = norm(jnp.sum(weights[..., None] * corrected(memory, alpha), axis=1))
    return Targets(jax.lax.stop_gradient(jnp.where(valid[:, None], mixed, 0.0)), valid)


def feature_memory_update(
    memory: Memory,
    images: Int[Array, " n"],
    z: Float[Array, "n K D"],
    alpha: float | Array,
    updated: Bool[Array, "n K"] | None = None,
) -> Memory:
    """M_ik <- α M_ik + (1 - α) z_ki for these images (each at most once), for the pairs that are `updated`."""
    updated = jnp.ones(z.shape[:2], bool) if updated is None else updated
    features, counts = memory.features[images], memory.counts[images]
    blended = alpha * features + (1 - alpha) * jax.lax.stop_gradient(z)
    return Memory(
        memory.features.at[images].set(jnp.where(updated[..., None], blended, features)),
        memory.counts.at[images].set(counts + updated.astype(jnp.int32)),
    )


def snapshot_average(
    shared: PyTree, snapshots: PyTree, task_weights: Float[Array, " K"], alpha: float | Array
) -> PyTree:
    """theta <- α theta + (1 - α) Σ_k w_k theta_k, an ensemble over tasks and time.

    `snapshots` has the leaves of `shared` with a task axis in front, or is a list of such trees, one per task.
    With parallel tasks, plain SGD and one inner step this is joint training with the rate (1 - α) w_k η.
    """
    if isinstance(snapshots, list | tuple):
        snapshots = jax.tree.map(lambda *leaves: jnp.stack(leaves), *snapshots)

    def average(old: Array, new: Array) -> Array:
        return alpha * old + (1 - alpha) * jnp.tensordot(task_weights.astype(new.dtype), new, axes=1)

    return jax.tree.map(average, shared, snapshots)
