"""The additions of MAML++ (Antoniou, Edwards, Storkey, ICLR 2019): multi-step loss, learned inner rates, per-step
batch-norm statistics. Per-step norm parameters are in `models.Conv4(norm_steps=T)`; first-order warm-up is a second
train step in `experiment.py`."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fewshot.models import Moments

Running = dict[str, dict[str, Float[Array, "T c"]]]

MOMENTUM = 0.1


def loss_importance(epoch: Int[Array, ""], num_steps: int, msl_epochs: int) -> Float[Array, " T"]:
    """Weights v_t of the query losses after each inner step: from uniform at epoch 0 to all on the last step.

    With decay d = 1/(T E) and floor m = 0.03/T:  v_t = max(1/T - e d, m),  v_{T-1} = min(1/T + e (T-1) d, 1 - (T-1) m).
    From epoch E = `msl_epochs` on only the last step counts.
    """
    epoch = jnp.asarray(epoch, jnp.result_type(float))
    last_only = jnp.zeros(num_steps).at[-1].set(1.0)
    if msl_epochs == 0:
        return last_only
    decay, floor = 1.0 / (num_steps * msl_epochs), 0.03 / num_steps
    early = jnp.maximum(1.0 / num_steps - epoch * decay, floor)
    last = jnp.minimum(1.0 / num_steps + epoch * (num_steps - 1) * decay, 1.0 - (num_steps - 1) * floor)
    importance = jnp.full(num_steps, early).at[-1].set(last)
    return jnp.where(epoch < msl_epochs, importance, last_only)


def init_rates(theta: dict[str, Array], num_steps: int, rate: float) -> dict[str, Float[Array, " entries"]]:
    """Per-layer per-step learning rates: one vector per tensor of θ. The last entry is never used (official code)."""
    return {path: jnp.full(num_steps + 1, rate) for path in theta}


def init_running(num_steps: int, channels: dict[str, int]) -> Running:
    """Running mean 0 and variance 1 of each norm layer, one row per inner step."""
    return {
        name: {"mean": jnp.zeros((num_steps, size)), "variance": jnp.ones((num_steps, size))}
        for name, size in channels.items()
    }


def update_running(running: Running, moments: dict[str, Moments], step: Int[Array, ""] | int) -> Running:
    """Move row `step` a tenth of the way to one forward pass's mean and unbiased variance.

    These averages are bookkeeping: as in the official code, nothing is ever normalised by them.
    """
    updated = {}
    for name, (mean, variance, count) in moments.items():
        unbiased = variance * (count / (count - 1))
        rows = running[name]
        updated[name] = {
            "mean": rows["mean"].at[step].multiply(1 - MOMENTUM).at[step].add(MOMENTUM * mean),
            "variance": rows["variance"].at[step].multiply(1 - MOMENTUM).at[step].add(MOMENTUM * unbiased),
        }
    return updated


def update_over_tasks(running: Running, trace: dict[str, Any]) -> Running:
    """`update_running` by all forward passes of a batch of tasks, in the order in which one device would run them:
    task by task, and within a task support, then query (if evaluated), step by step."""
    num_steps = trace["support_loss"].shape[1]
    first_query = num_steps - trace["query_loss"].shape[1]  # without multi-step loss only the last step has one

    def row(moments, index):
        return jax.tree.map(lambda leaf: leaf[index], moments)

    def one_task(running, moments):
        support, query = moments
        for step in range(num_steps):
            running = update_running(running, row(support, step), step)
            if step >= first_query:
                running = update_running(running, row(query, step - first_query), step)
        return running, None

    return jax.lax.scan(one_task, running, (trace["moments"], trace["query_moments"]))[0]
