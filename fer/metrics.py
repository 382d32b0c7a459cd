"""How well valence and arousal are predicted, over all frames; in NumPy, in 64 bits."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

NAMES = ("rmse", "pcc", "ccc", "sagr")
OUTPUTS = ("valence", "arousal")


def standard(
    predictions: Float[np.ndarray, "n 2"], labels: Float[np.ndarray, "n 2"], undefined: float = np.nan
) -> dict[str, np.ndarray]:
    """{name: [2]}: root mean squared error, Pearson and concordance correlation, and agreement of signs (SAGR).

    `undefined`: what a correlation is without variance.
    """
    p, y = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    covariance = np.mean((p - p.mean(0)) * (y - y.mean(0)), axis=0)
    spread, both = p.var(0) + y.var(0) + (p.mean(0) - y.mean(0)) ** 2, p.std(0) * y.std(0)
    return {
        "rmse": np.sqrt(np.mean((p - y) ** 2, axis=0)),
        "pcc": _ratio(covariance, both, undefined),
        "ccc": _ratio(2 * covariance, spread, undefined),
        "sagr": np.mean(np.sign(p) == np.sign(y), axis=0),
    }


def official(
    predictions: Float[np.ndarray, "n 2"],
    labels: Float[np.ndarray, "n 2"],
    batch_size: int = 64,
    undefined: float = np.nan,
) -> dict[str, np.ndarray]:
    """The official code's numbers, which are others.

    RMSE is the mean of the batches' RMSEs; the covariance in PCC and CCC is divided by n - 1, the variances by n; a
    label of 0 never agrees in sign.
    """
    p, y = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    batches = [slice(start, start + batch_size) for start in range(0, len(p), batch_size)]
    covariance = np.sum((p - p.mean(0)) * (y - y.mean(0)), axis=0) / max(len(p) - 1, 1)
    spread, both = p.var(0) + y.var(0) + (p.mean(0) - y.mean(0)) ** 2, p.std(0) * y.std(0)
    return {
        "rmse": np.mean([np.sqrt(np.mean((p[b] - y[b]) ** 2, axis=0)) for b in batches], axis=0),
        "pcc": _ratio(covariance, both, undefined),
        "ccc": _ratio(2 * covariance, spread, undefined),
        "sagr": np.mean((np.sign(p) == np.sign(y)) & (y != 0), axis=0),
    }


def _ratio(above: np.ndarray, below: np.ndarray, undefined: float) -> np.ndarray:
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), undefined)


def identity_residuals(
    predictions: Float[np.ndarray, "n 2"], labels: Float[np.ndarray, "n 2"], identity: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "K 2"]:
    """Mean of prediction - label for each identity present, in the order of their numbers."""
    residual = np.asarray(predictions, np.float64) - labels
    return np.array([residual[identity == code].mean(0) for code in np.unique(identity)])


def identity_bias(
    predictions: Float[np.ndarray, "n 2"], labels: Float[np.ndarray, "n 2"], identity: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " 2"]:
    """Standard deviation over identities of their mean residuals: 0 if nobody is over- or underestimated."""
    return identity_residuals(predictions, labels, identity).std(0)


def named(values: Mapping[str, np.ndarray], prefix: str = "") -> dict[str, float]:
    """{"ccc_valence": ..., "ccc_arousal": ..., "ccc": their mean, ...}."""
    table = {}
    for name, pair in values.items():
        table |= {f"{prefix}{name}_{output}": float(value) for output, value in zip(OUTPUTS, pair, strict=True)}
        table[f"{prefix}{name}"] = float(np.mean(pair))
    return table
