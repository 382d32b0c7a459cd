"""Linear probe: multinomial logistic regression on frozen features, solved to its optimum.

The problem is convex, so the result depends on no seed. It is solved on the host in float64: in float32 a line search
stops short of the gradient that is asked for.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float, Float64, Integer
from threadpoolctl import threadpool_limits

STD_EPSILON = 1e-6
_SMALL = 1 << 28  # multiplications of a matrix product that one thread does as fast as several
_GRADIENT = 1e-6  # largest entry of the gradient at which the solver may stop


class Standard(NamedTuple):
    """Mean and (population) standard deviation of the training features."""

    mean: Float64[np.ndarray, " d"]
    std: Float64[np.ndarray, " d"]

    def __call__(self, features: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n d"]:
        """(h - mean) / sqrt(std^2 + 1e-6)."""
        return (features - self.mean) / np.sqrt(self.std**2 + STD_EPSILON)


class Probe(NamedTuple):
    """Weights and biases on standardised features, the objective at the optimum and its largest gradient entry."""

    weights: Float64[np.ndarray, "d c"]
    bias: Float64[np.ndarray, " c"]
    objective: float
    gradient: float

    def logits(self, features: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n c"]:
        """Class logits of standardised features."""
        return features @ self.weights + self.bias


def standard(features: Float[np.ndarray, "n d"]) -> Standard:
    """The moments of these features."""
    wide = features.astype(np.float64)
    return Standard(wide.mean(0), wide.std(0))


def solve(
    features: Float[np.ndarray, "n d"],
    labels: Integer[np.ndarray, " n"],
    num_classes: int,
    l2: float,
    iterations: int = 200,
    initial: Probe | None = None,
) -> Probe:
    """The minimum of mean cross entropy + l2 / 2 ||W||^2 (biases are free) by L-BFGS from zero or a near solution.

    The biases are given with mean 0 over the classes: a constant in all of them changes nothing.
    """
    rows = features.astype(np.float64)
    n, width = rows.shape
    places = np.arange(n)

    buffer = np.empty((n, num_classes))  # in place: fresh pages would cost more than the arithmetic

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = flat[:-num_classes].reshape(width, num_classes), flat[-num_classes:]
        logits = np.matmul(rows, weights, out=buffer)
        logits += bias
        logits -= logits.max(axis=1, keepdims=True)
        right = logits[places, labels]
        error = np.exp(logits, out=buffer)
        total = error.sum(axis=1, keepdims=True)
        value = np.mean(np.log(total[:, 0]) - right) + l2 / 2 * np.sum(weights**2)
        error /= n * total
        error[places, labels] -= 1 / n
        return float(value), np.concatenate([(rows.T @ error + l2 * weights).ravel(), error.sum(0)])

    first = np.zeros((width + 1) * num_classes)
    if initial is not None:
        first = np.concatenate([initial.weights.ravel(), initial.bias])
    # Threads of BLAS wait for each other longer than such products take, far longer on a busy machine.
    with threadpool_limits(1 if n * width * num_classes < _SMALL else None):
        found = scipy.optimize.minimize(
            objective,
            first,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": iterations, "gtol": _GRADIENT, "ftol": 0.0, "maxfun": 10 * iterations, "maxcor": 20},
        )
    weights, bias = found.x[:-num_classes].reshape(width, num_classes), found.x[-num_classes:]
    return Probe(weights, bias - bias.mean(), float(found.fun), float(np.abs(found.jac).max()))


def accuracy(logits: Float[np.ndarray, "n c"], labels: Integer[np.ndarray, " n"]) -> float:
    """Share of rows whose largest logit is that of the label, the first of equals."""
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def choose_l2(
    features: Float[np.ndarray, "n d"],
    labels: Integer[np.ndarray, " n"],
    num_classes: int,
    candidates: Sequence[float],
    held_out_share: float,
    iterations: int = 200,
) -> float:
    """The candidate with the best accuracy on a held-out share of these images, of equals the largest."""
    if len(candidates) == 1:
        return candidates[0]
    order = np.random.default_rng(0).permutation(len(labels))
    held_out, kept = np.split(order, [max(1, round(held_out_share * len(order)))])
    found, solution = {}, None
    for l2 in sorted(candidates, reverse=True):
        solution = solve(features[kept], labels[kept], num_classes, l2, iterations, solution)
        found[l2] = accuracy(solution.logits(features[held_out]), labels[held_out])
    return max(found, key=found.__getitem__)


def adaptive_average_pool(maps: Float[Array, "n h w c"], most: int) -> Float[Array, "n d"]:
    """Maps averaged over a grid that is as fine as gives at most `most` numbers an image [Zhang et al. 2016].

    Cell i of p over h positions averages floor(i h / p) .. ceil((i + 1) h / p) - 1.
    """
    n, h, w, c = maps.shape
    side = max(1, min(h, w, int(np.sqrt(most / c))))

    def cells(length: int) -> Array:
        matrix = np.zeros((side, length), np.float32)
        for i in range(side):
            first, last = i * length // side, -(-(i + 1) * length // side)
            matrix[i, first:last] = 1 / (last - first)
        return jnp.asarray(matrix)

    return jnp.einsum("ih,jw,nhwc->nijc", cells(h), cells(w), maps).reshape(n, -1)
