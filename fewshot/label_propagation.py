"""Label propagation over the images of one task (Zhou et al., NIPS 2004; for few shots TPN, Liu et al., ICLR 2019).

Images that look alike are neighbours in a graph, and the support labels flow along its edges to the query images. In
closed form F = (I - α S)^{-1} Y, where S is the normalised affinity of all images and Y holds the support labels.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

EPSILON = 1e-8  # added to the degrees: an image without neighbours gets a row of zeros, not NaN


@dataclasses.dataclass(frozen=True)
class Propagation:
    """What is fixed before compilation."""

    neighbours: int = 20  # k of the sparse graph; 0: all pairs
    alpha: float = 0.99  # how far labels flow: 0 keeps them where they are
    keep_diagonal: bool = False  # True as in TPN: every image is its own neighbour, with affinity 1
    sigma: str = "scalar"  # the length scale is "fixed", one learned number, or "per_image", see length_scale.py
    initial_sigma: float = 1.0  # the fixed one, or where the learned number starts


def affinity(
    features: Float[Array, "n d"], sigma: Float[Array, ""] | Float[Array, " n"], keep_diagonal: bool = False
) -> Float[Array, "n n"]:
    """W_ij = exp(-D_ij / 2) with D_ij the mean over the d entries of (z_i/σ_i - z_j/σ_j)²; W_ii is 0, or 1 if kept.

    `sigma` is one length scale for all images, or one per image. D comes from inner products, without any [n, n, d].
    """
    n, d = features.shape
    scaled = features / jnp.broadcast_to(sigma, (n,))[:, None]
    # Distances do not feel a shift; near the origin fewer digits cancel.
    scaled = scaled - jax.lax.stop_gradient(jnp.mean(scaled, axis=0, keepdims=True))
    squares = jnp.sum(scaled * scaled, axis=1)
    products = jnp.matmul(scaled, scaled.T, precision=jax.lax.Precision.HIGHEST)
    distance = jnp.maximum(squares[:, None] + squares[None, :] - 2 * products, 0) / d
    diagonal = jnp.eye(n, dtype=bool)
    return jnp.where(diagonal, 1.0 if keep_diagonal else 0.0, jnp.exp(-distance / 2))


def neighbour_mask(weights: Float[Array, "n n"], neighbours: int) -> Bool[Array, "n n"]:
    """True at (i, j) if j is among the k largest of row i or i among those of row j; of equal ones the lowest index.

    0 neighbours: all pairs. Raises ValueError if there are more than n.
    """
    n = weights.shape[0]
    if not 0 <= neighbours <= n:
        raise ValueError(f"neighbours is {neighbours}, but must lie in 0..{n}, the number of images.")
    if neighbours == 0:
        return jnp.ones((n, n), bool)
    nearest = jax.lax.top_k(jax.lax.stop_gradient(weights), neighbours)[1]
    chosen = jnp.zeros((n, n), bool).at[jnp.arange(n)[:, None], nearest].set(True)
    return chosen | chosen.T


def normalize(weights: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """S = D^{-1/2} W D^{-1/2}, D the degrees Σ_j W_ij + ε."""
    scale = jax.lax.rsqrt(jnp.sum(weights, axis=1) + EPSILON)
    return scale[:, None] * weights * scale[None, :]


def graph(
    spec: Propagation, features: Float[Array, "n d"], sigma: Float[Array, ""] | Float[Array, " n"]
) -> Float[Array, "n n"]:
    """The sparse affinity. The mask is a constant for every gradient."""
    weights = affinity(features, sigma, spec.keep_diagonal)
    return jnp.where(neighbour_mask(weights, spec.neighbours), weights, 0.0)


def propagate(
    spec: Propagation,
    features: Float[Array, "n d"],
    sigma: Float[Array, ""] | Float[Array, " n"],
    support_labels: Int[Array, " s"],
    num_classes: int,
) -> Float[Array, "n num_classes"]:
    """F = (I - α S)^{-1} Y of n images, the first s of which are the support; at least in the features' precision.

    By Cholesky factorisation, whose factor the gradient uses again. For this matrix (positive diagonal, the rest
    negative or zero) no step of it subtracts, so small entries of F are as accurate as large ones and none is negative.
    """
    if features.dtype != jnp.float64:
        features = features.astype(jnp.float32)
    n = features.shape[0]
    labels = jax.nn.one_hot(support_labels, num_classes, dtype=features.dtype)
    known = jnp.zeros((n, num_classes), features.dtype).at[: labels.shape[0]].set(labels)
    system = jnp.eye(n, dtype=features.dtype) - spec.alpha * normalize(graph(spec, features, sigma))
    return jax.scipy.linalg.solve(system, known, assume_a="pos")


def soft_labels(scores: Float[Array, "n num_classes"]) -> Float[Array, "n num_classes"]:
    """F_ic / Σ_c F_ic: probabilities. An image that no label reaches (all zero) gets the same for every class."""
    total = jnp.sum(scores, axis=1, keepdims=True)
    reached = total > 0
    return jnp.where(reached, scores / jnp.where(reached, total, 1.0), 1.0 / scores.shape[1])


def hard_labels(scores: Float[Array, "n num_classes"]) -> Float[Array, "n num_classes"]:
    """One-hot rows of the largest entry, of equal ones the lowest class; without gradient."""
    largest = jnp.argmax(jax.lax.stop_gradient(scores), axis=1)
    return jax.nn.one_hot(largest, scores.shape[1], dtype=scores.dtype)
