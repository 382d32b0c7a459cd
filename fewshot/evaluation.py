"""Accuracy over test episodes, its confidence interval, and the ensemble of the best checkpoints (official protocol).

All functions are numpy in 64 bit: they run once, on logits that have left the device.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax, logsumexp

from common.metrics import ci95_normal, ci95_proportion

AVERAGES = ("logits", "probabilities")


def accuracy_report(logits: Float[np.ndarray, "E NQ N"], labels: Int[np.ndarray, "E NQ"]) -> dict[str, float]:
    """Mean accuracy in [0, 1] over all predictions of E episodes, and the half-width of its 95 % interval, twice.

    "ci95_per_query" treats all E*NQ predictions as independent (official code: 1.96 sqrt(p (1 - p) / (E NQ)));
    "ci95_per_episode" treats the episodes as independent (most papers: 1.96 std / sqrt(E), std with ddof 1), and is
    NaN for a single episode.
    """
    correct = np.argmax(logits, axis=-1) == labels
    accuracy = float(correct.mean())
    return {
        "accuracy": accuracy,
        "ci95_per_query": ci95_proportion(accuracy, correct.size),
        "ci95_per_episode": ci95_normal(correct.mean(axis=1)),
    }


def ensemble_logits(logits: Float[np.ndarray, "M ..."], average: str = "logits") -> Float[np.ndarray, "..."]:
    """Logits of the ensemble of M models: the mean of their logits (official), or the logarithm of the mean of their
    probabilities. Classes are on the last axis. Raises ValueError on any other `average`."""
    logits = logits.astype(np.float64)
    if average == "logits":
        return logits.mean(axis=0)
    if average == "probabilities":
        return logsumexp(log_softmax(logits, axis=-1), axis=0) - np.log(len(logits))
    raise ValueError(f"average is {average!r}, but one of {', '.join(AVERAGES)} is expected.")
