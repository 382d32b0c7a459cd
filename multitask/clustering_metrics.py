"""How well a clustering agrees with labels: mutual information, its normalisations, F1 over pairs. All in float64."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Integer

NORMALISATIONS = ("arithmetic", "geometric", "max", "min")


class PairScores(NamedTuple):
    """Over pairs of images: precision (pairs that one cluster holds), recall (pairs of equal label), F1."""

    precision: float
    recall: float
    f1: float


def contingency(labels: Integer[np.ndarray, " n"], clusters: Integer[np.ndarray, " n"]) -> Float64[np.ndarray, "u v"]:
    """Number of images with each label (rows, sorted) in each cluster (columns, sorted)."""
    rows, row = np.unique(labels, return_inverse=True)
    columns, column = np.unique(clusters, return_inverse=True)
    table = np.zeros((len(rows), len(columns)))
    np.add.at(table, (row, column), 1.0)
    return table


def entropy(counts: Float64[np.ndarray, " u"]) -> float:
    """Entropy in nats of a partition into parts of these sizes, all above 0."""
    share = counts / counts.sum()
    return float(-np.sum(share * np.log(share)))


def mutual_information(table: Float64[np.ndarray, "u v"]) -> float:
    """In nats; 0 log 0 = 0."""
    joint = table / table.sum()
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float(np.sum(joint[seen] * np.log(joint[seen] / independent[seen])))


def nmi(
    labels: Integer[np.ndarray, " n"], clusters: Integer[np.ndarray, " n"], normalisation: str = "arithmetic"
) -> float:
    """Mutual information divided by a mean of both entropies.

    Args:
      labels, clusters: two partitions; the result is symmetric and ignores names.
      normalisation: one of `NORMALISATIONS`. "arithmetic" [Song et al. 2016] is scikit-learn's default since 0.22,
        "geometric" was it before, so papers of 2019 mix them.

    Returns:
      In 0..1; 1 if both partitions are trivial, 0 if there is no information otherwise.
    """
    table = contingency(labels, clusters)
    first, second = entropy(table.sum(1)), entropy(table.sum(0))
    if table.shape == (1, 1):
        return 1.0
    information = mutual_information(table)
    if 1 in table.shape or information <= 0:
        return 0.0
    divisors = {
        "arithmetic": (first + second) / 2,
        "geometric": np.sqrt(first * second),
        "max": max(first, second),
        "min": min(first, second),
    }
    return float(information / divisors[normalisation])


def pairwise_f1(labels: Integer[np.ndarray, " n"], clusters: Integer[np.ndarray, " n"]) -> PairScores:
    """Precision, recall and F1 of "these two images belong together" over all pairs; 0 where there is no pair."""
    table = contingency(labels, clusters)

    def pairs(counts: np.ndarray) -> float:
        return float(np.sum(counts * (counts - 1)) / 2)

    together, in_clusters, in_labels = pairs(table), pairs(table.sum(0)), pairs(table.sum(1))
    precision = together / in_clusters if in_clusters else 0.0
    recall = together / in_labels if in_labels else 0.0
    both = precision + recall
    return PairScores(precision, recall, 2 * precision * recall / both if both else 0.0)
