"""How rough the loss is around trained weights: extreme Hessian eigenvalues, their ratio, a cut through the surface.

The paper plots a "condition number" of the Hessian without printing its definition. That it is |smallest| / |largest|
eigenvalue of the loss's Hessian with respect to all weights is *inferred* here: the plotted values lie in 0..0.62 and
small ones are the smooth ones, which is the convexity ratio of Li et al. 2018 ("Visualizing the loss landscape").
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from common import plots
from common.errors import UserError

PyTree = Any
Loss = Callable[[PyTree, PyTree], Array]  # (params, data) -> scalar
_BREAKDOWN = 100  # times the rounding unit and the operator's size: what is left of a vector after that is noise


class Extremes(NamedTuple):
    """The algebraically smallest and largest eigenvalue that Lanczos has found."""

    smallest: Float[Array, ""]
    largest: Float[Array, ""]


def hvp(loss: Loss, params: PyTree, data: PyTree, vector: PyTree) -> PyTree:
    """Hessian of `loss` with respect to `params`, times a vector of their structure: forward over reverse."""
    return jax.jvp(lambda params: jax.grad(loss)(params, data), (params,), (vector,))[1]


class _Basis(NamedTuple):
    """What Lanczos has so far."""

    vectors: Float[Array, "m n"]  # found ones first, then zeros
    vector: Float[Array, " n"]  # the next one; 0 once the space is exhausted
    size: Float[Array, ""]  # of the matrix, roughly


def lanczos(
    product: Callable[[Float[Array, " n"]], Float[Array, " n"]], start: Float[Array, " n"], iterations: int
) -> Extremes:
    """Extreme eigenvalues of the symmetric matrix that `product` multiplies by.

    Every new vector is made orthogonal to all before it, twice; memory is `iterations` vectors. The estimates lie
    between the true extremes and reach them after n iterations at the latest.

    A loop on the host around compiled pieces, not a `scan`: on a CPU a convolution inside a compiled loop runs on one
    slow path (ResNet-20, 64 images, 4 products, two busy cores: 282 s against 12 s).

    Raises:
      ValueError: fewer than 1 iteration, or more than n.
    """
    if not 1 <= iterations <= len(start):
        raise ValueError(f"iterations is {iterations}, but must be at least 1 and at most the {len(start)} parameters")
    zeros = jnp.zeros((iterations, len(start)), start.dtype)
    basis = _Basis(zeros, start / jnp.linalg.norm(start), jnp.zeros((), start.dtype))
    rows = []
    for i in range(iterations):
        basis, row = _advance(basis, product(basis.vector), i)
        rows.append(row)
    return _extremes(*(jnp.stack(column) for column in zip(*rows, strict=True)))


@jax.jit
def _advance(basis: _Basis, image: Float[Array, " n"], i: Any) -> tuple[_Basis, tuple[Array, Array, Array]]:
    """The next basis, and (diagonal, beside it, whether the vector was one) of the tridiagonal matrix."""
    vectors = basis.vectors.at[i].set(basis.vector)
    diagonal = basis.vector @ image
    for _ in range(2):  # once leaves rounding errors behind that bring found eigenvalues back
        image = image - vectors.T @ (vectors @ image)
    beside = jnp.linalg.norm(image)
    size = jnp.maximum(basis.size, jnp.abs(diagonal) + beside)
    # The space is exhausted when nothing but rounding errors is left: the vectors from here on are zero.
    beside = jnp.where(beside > _BREAKDOWN * jnp.finfo(image.dtype).eps * size, beside, 0)
    following = jnp.where(beside > 0, image / jnp.where(beside > 0, beside, 1), 0)
    return _Basis(vectors, following, size), (diagonal, beside, jnp.any(basis.vector != 0))


@jax.jit
def _extremes(diagonal: Float[Array, " m"], beside: Float[Array, " m"], alive: Bool[Array, " m"]) -> Extremes:
    # Rows of zero vectors get an element from between the extremes, so that they change neither.
    diagonal = jnp.where(alive, diagonal, diagonal[0])
    eigenvalues = jnp.linalg.eigvalsh(jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1))
    return Extremes(eigenvalues[0], eigenvalues[-1])


def hessian_extremes(loss: Loss, params: PyTree, data: PyTree, key: PRNGKeyArray, iterations: int = 30) -> Extremes:
    """Extreme eigenvalues of the Hessian of `loss(params, data)`; `iterations` is capped at the number of parameters.

    Compiles one Hessian-vector product. The start is random, because the gradient of a trained network can be
    orthogonal to what matters.
    """
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def product(params, data, vector):
        return ravel_pytree(hvp(loss, params, data, unravel(vector)))[0]

    start = jax.random.normal(key, flat.shape, flat.dtype)
    return lanczos(functools.partial(product, params, data), start, min(iterations, flat.size))


def condition_number(extremes: Extremes) -> Float[Array, ""]:
    """|smallest| / |largest| eigenvalue; 0 at a convex, well-shaped place. The definition is inferred, see above."""
    return jnp.abs(extremes.smallest) / jnp.abs(extremes.largest)


def filter_normalised_direction(params: PyTree, key: PRNGKeyArray) -> PyTree:
    """A random direction whose every filter is as long as the filter in `params`; none along vectors and scalars.

    A filter is all that leads to one output channel (the last axis). Biases and BatchNorm's vectors are left alone,
    as in the code of Li et al. 2018.
    """
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))

    def direction(leaf, key):
        if leaf.ndim < 2:
            return jnp.zeros_like(leaf)
        drawn, axes = jax.random.normal(key, leaf.shape, leaf.dtype), tuple(range(leaf.ndim - 1))
        lengths = [jnp.linalg.norm(x.reshape(-1, x.shape[-1]), axis=0) for x in (leaf, drawn)]
        return drawn * jnp.expand_dims(lengths[0] / lengths[1], axes)

    return jax.tree.unflatten(structure, [direction(leaf, key) for leaf, key in zip(leaves, keys, strict=True)])


def surface(
    loss: Loss, params: PyTree, data: PyTree, key: PRNGKeyArray, points: int = 21, reach: float = 1.0
) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, "p p"]]:
    """Losses on a square through `params`, spanned by two filter-normalised directions.

    Args:
      points: along each side, odd, so that `params` lie in the middle.
      reach: of each side from the middle, in filter lengths.

    Returns:
      coordinates of a side, and losses [along the first direction, along the second].

    Raises:
      UserError: an even number of points, or a reach that is not positive.
    """
    if points < 3 or points % 2 == 0 or not reach > 0:
        raise UserError(f"a surface has an odd number of points (not {points}) and a positive reach (not {reach}).")
    directions = [filter_normalised_direction(params, part) for part in jax.random.split(key)]

    @jax.jit
    def at(params, directions, data, steps):
        moved = jax.tree.map(lambda p, a, b: p + steps[0] * a + steps[1] * b, params, *directions)
        return loss(moved, data)

    side = np.linspace(-reach, reach, points)
    losses = [[float(at(params, directions, data, jnp.asarray((a, b)))) for b in side] for a in side]
    return side, np.array(losses)


def draw_surface(side: Float[np.ndarray, " p"], losses: Float[np.ndarray, "p p"], file: Path, title: str = "") -> None:
    """Contours of a surface as PNG and SVG."""
    figure, axes = plots.figure(5.0, 4.0)
    with mpl.rc_context(plots.STYLE):
        drawn = axes.contourf(side, side, losses.T, levels=20, cmap="viridis")
        axes.plot(0, 0, "+", color="white")
        figure.colorbar(drawn, label="loss")
        axes.set(xlabel="first direction (filter lengths)", ylabel="second direction (filter lengths)", title=title)
    plots.save(figure, file)
