"""How the losses and gradients of the tasks are added up."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

KINDS = ("uniform", "dwa", "uncertainty")


def sigmoid_rampup(step: Int[Array, ""] | Float[Array, "*s"] | int, length: float | int) -> Float[Array, "*s"]:
    """exp(-5 (1 - min(step / length, 1))²) [Laine and Aila 2017]: e^-5 at step 0, 1 from `length` on (0: always 1)."""
    done = jnp.minimum(jnp.asarray(step, float) / length, 1.0) if length else jnp.ones(jnp.shape(step))
    return jnp.exp(-5 * (1 - done) ** 2)


class EpochLosses(NamedTuple):
    """Losses of the running epoch, summed, and the means of the two before it."""

    sums: Float[Array, " K"]
    last: Float[Array, " K"]
    before: Float[Array, " K"]


def add_losses(history: EpochLosses, losses: Float[Array, " K"], step: Int[Array, ""], per_epoch: int) -> EpochLosses:
    """With the losses of `step` (from 0); after an epoch's last step its means move into the history."""
    sums = history.sums + losses
    ended = (step + 1) % per_epoch == 0
    moved = EpochLosses(jnp.zeros_like(sums), sums / per_epoch, history.last)
    going = EpochLosses(sums, history.last, history.before)
    return jax.tree.map(lambda a, b: jnp.where(ended, a, b), moved, going)


def dynamic_weight_average(
    last: Float[Array, " K"], before: Float[Array, " K"], epoch: Int[Array, ""] | int, temperature: float | Array
) -> Float[Array, " K"]:
    """λ_k = K softmax_k(r_k / T), r_k = last_k / before_k, the epoch means of the two epochs before [Liu et al. 2019].

    1 in epochs 0 and 1.
    """
    known = jnp.asarray(epoch) >= 2
    ratio = jnp.where(known, last, 1.0) / jnp.where(known & (before != 0), before, 1.0)
    return jnp.where(known, last.shape[0] * jax.nn.softmax(ratio / temperature), 1.0)


def uncertainty_weighting(
    losses: Float[Array, " K"], log_variances: Float[Array, " K"], coefficients: Float[Array, " K"]
) -> Float[Array, " K"]:
    """c_k exp(-s_k) L_k + s_k / 2 with learned s, to be summed [Kendall et al. 2018]; c: 1/2 for regression, else 1."""
    return coefficients * jnp.exp(-log_variances) * losses + log_variances / 2


def pcgrad(gradients: Float[Array, "K P"], order: Int[Array, "K K-1"]) -> Float[Array, "K P"]:
    """Gradient surgery [Yu et al. 2020]: each row without its parts that oppose other rows; their sum is the update.

    Args:
      gradients: one flat gradient per task.
      order: for each task, the others in the order in which it is projected. The running row is projected, the other
        is as it was.
    """

    def project(running: Array, other: Array) -> Array:
        product, square = jnp.sum(running * other), jnp.sum(other**2)
        opposing = (product < 0) & (square > 0)
        return running - jnp.where(opposing, product / jnp.where(square > 0, square, 1.0), 0.0) * other

    rows = []
    for task in range(gradients.shape[0]):
        row = gradients[task]
        for place in range(order.shape[1]):
            row = project(row, gradients[order[task, place]])
        rows.append(row)
    return jnp.stack(rows)


def random_order(key: Array, num_tasks: int) -> Int[Array, "K K-1"]:
    """For each task, the others in random order."""
    keys = jax.random.split(key, num_tasks)
    others = [[other for other in range(num_tasks) if other != task] for task in range(num_tasks)]
    rows = [jax.random.permutation(keys[task], jnp.array(others[task], jnp.int32)) for task in range(num_tasks)]
    return jnp.stack(rows)
