"""What the search minimises: cross entropy to the labels plus cross entropy to the ensemble of interim sub-networks.

Paper, reward R = -L(D_val; sub-network) - L(T; sub-network): two cross entropies and no extra forward pass. The values
are sums over images; how they are divided is `divisor`'s business.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

TEACHERS = ("ensemble", "single", "none")


def cross_entropy_sum(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Float[Array, ""]:
    """Sum over images of -log softmax(z)[y]."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).sum()


def knowledge_cross_entropy_sum(
    logits: Float[Array, "n classes"], teacher: Float[Array, "n classes"]
) -> Float[Array, ""]:
    """Sum over images of -sum_c softmax(T)_c log softmax(z)_c, at temperature 1; no gradient reaches the teacher."""
    target = jax.lax.stop_gradient(jax.nn.softmax(teacher))
    return -(target * jax.nn.log_softmax(logits)).sum()


def score_sum(
    logits: Float[Array, "n classes"], labels: Int[Array, " n"], teacher: Float[Array, "n classes"] | None
) -> Float[Array, ""]:
    """The search score, lower is better; without a teacher the cross entropy alone."""
    loss = cross_entropy_sum(logits, labels)
    return loss if teacher is None else loss + knowledge_cross_entropy_sum(logits, teacher)


def divisor(normalise: str, count: int, batch_size: int) -> float:
    """What sums over all `count` images are divided by: "samples": their number.

    "official": each batch by the configured batch size, a short last one too, and the mean over batches of that.
    """
    return float(count if normalise == "samples" else batch_size * -(-count // batch_size))


def measure(
    logits: Float[np.ndarray, "k n classes"],
    labels: Int[np.ndarray, " n"],
    teacher: Float[np.ndarray, "n classes"] | None,
) -> dict[str, Float[np.ndarray, " k"]]:
    """loss and score (sums over images, in float64) and accuracy (mean) of k candidates."""
    logs = log_softmax(logits)
    loss = -logs[:, np.arange(len(labels)), labels].sum(1)
    score = loss
    if teacher is not None:
        score = loss - (np.exp(log_softmax(teacher)) * logs).sum((1, 2))
    return {"loss": loss, "score": score, "accuracy": (logits.argmax(-1) == labels).mean(1)}


def log_softmax(logits: Float[np.ndarray, "*n classes"]) -> Float[np.ndarray, "*n classes"]:
    """In float64, along the last axis."""
    shifted = np.asarray(logits, np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def update_ensemble(
    ensemble: Float[np.ndarray, "n classes"], members: int, logits: Float[np.ndarray, "n classes"]
) -> Float[np.ndarray, "n classes"]:
    """Mean of the logits of `members` sub-networks and one more: logits are averaged, softmax comes after."""
    return (members * ensemble + logits) / np.float32(members + 1)
