"""Fine-tuning towards the memory bank: two views of an image, one set of fixed teacher logits.

    M    = mean of the bank's teachers that are nearer to the best teacher than the student is
    loss = mean over images of sum over views [ CE(y, z_a) + KL_T(M || z_a) ]

Source: official code (spec section 7). The paper compares losses where the code compares divergences: `teacher_filter`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pruning.objective import cross_entropy_sum

TEACHERS = ("ensemble", "single", "none")
FILTERS = ("divergence", "loss", "all")


def divergence(
    target: Float[Array, "n classes"], logits: Float[Array, "n classes"], temperature: float
) -> Float[Array, " n"]:
    """T sum_c softmax(p / T) (log softmax(p / T) - log softmax(q / T)): a factor T, not T squared."""
    p, q = (jax.nn.log_softmax(values / temperature) for values in (target, logits))
    return temperature * (jnp.exp(p) * (p - q)).sum(-1)


def teachers_in_use(
    student: Float[Array, "n 2 classes"],
    labels: Int[Array, " n"],
    bank: Float[Array, "n classes k"],
    temperature: float,
    teacher_filter: str,
) -> Float[Array, " k"]:
    """1 for the teachers that still know more than the student does, over the whole batch.

    "divergence": nearer to teacher 0, the best, than the mean of the student's views (official code). "loss": not above
    the student's cross entropy (paper). "all": every one.
    """
    teachers = jnp.moveaxis(bank, -1, 0)
    if teacher_filter == "all":
        return jnp.ones(len(teachers))
    if teacher_filter == "loss":
        current = (cross_entropy_sum(student[:, 0], labels) + cross_entropy_sum(student[:, 1], labels)) / 2
        theirs = jax.vmap(cross_entropy_sum, (0, None))(teachers, labels)
        return (theirs <= current).astype(jnp.float32)
    current = divergence(teachers[0], student.mean(1), temperature).sum()
    theirs = jax.vmap(lambda teacher: divergence(teachers[0], teacher, temperature).sum())(teachers)
    return (theirs < current).astype(jnp.float32)


def selected_knowledge(bank: Float[Array, "n classes k"], used: Float[Array, " k"]) -> Float[Array, "n classes"]:
    """Mean of the logits of the teachers in use; zeros if there are none."""
    return bank @ used / jnp.maximum(used.sum(), 1.0)


def knowledge_loss(
    student: Float[Array, "n 2 classes"],
    labels: Int[Array, " n"],
    bank: Float[Array, "n classes k"],
    temperature: float,
    teacher_filter: str = "divergence",
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(L, number of teachers in use). Half of L is what is minimised; no gradient reaches bank, filter or M."""
    fixed = jax.lax.stop_gradient(student)
    used = teachers_in_use(fixed, labels, bank, temperature, teacher_filter)
    knowledge = selected_knowledge(bank, used)
    views = (student[:, 0], student[:, 1])
    total = sum(cross_entropy_sum(z, labels) + divergence(knowledge, z, temperature).sum() for z in views)
    return jnp.asarray(total) / len(labels), used.sum()
