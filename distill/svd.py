"""Truncated singular value decomposition of feature maps, with the derivative of its right vectors (KD-SVD, section 3).

A map `[B, H, W, C]` becomes X `[B, HW, C]` (rows = positions), X = U diag(s) Vᵀ with r = min(HW, C) columns. Only V is
differentiated. The derivative of a singular vector has 1 / (s_i² - s_j²) and 1 / s_i in it; ReLU maps often have equal
or vanishing singular values, so it is written here as one function that leaves out what is not defined.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from common import parallel
from distill.pairing import l2_normalize

GRADIENTS = ("paper", "published", "toolbox", "exact")
BACKENDS = ("auto", "svd", "eigen")
LEADING = ("auto", "svd", "eigen", "power")
PAPER_RANK = 5  # leading vectors in the derivative of the first repository, however many are distilled
POWER_ITERATIONS = 128

_matmul = partial(jnp.einsum, precision=lax.Precision.HIGHEST)  # lower precisions ruin small singular values


class SVD(NamedTuple):
    """s descending, columns of u and v in its order."""

    s: Float[Array, "B r"]
    u: Float[Array, "B HW r"]
    v: Float[Array, "B C r"]


def feature_matrix(x: Array) -> Float[Array, "B HW C"]:
    """`[B, H, W, C]` to `[B, HW, C]`, `[B, C]` to `[B, 1, C]`; at least float32. Nothing is centred or scaled.

    Raises ValueError for an array of another number of axes.
    """
    if x.ndim not in (2, 4):
        raise ValueError(
            f"a tap has shape {x.shape}, but must be [batch, height, width, channels] or [batch, channels]."
        )
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(x.shape[0], -1, x.shape[-1])


def round_off(s: Float[Array, "B r"], rows: int, columns: int) -> Float[Array, "B 1"]:
    """The size below which a singular value of a matrix of these sides cannot be told from 0."""
    return max(rows, columns) * jnp.finfo(s.dtype).eps * s[:, :1]


def thin_svd(x: Float[Array, "B HW C"]) -> SVD:
    """Direct thin SVD. Not differentiable: use `svd_right_vectors`."""
    u, s, vt = parallel.map_examples(partial(jnp.linalg.svd, full_matrices=False), lax.stop_gradient(x))
    return SVD(s, u, jnp.swapaxes(vt, 1, 2))


def eigen_svd(x: Float[Array, "B HW C"]) -> SVD:
    """The same up to signs by the eigenvectors of the smaller of X Xᵀ and Xᵀ X (KD-EID of the toolbox).

    The other side is the product of these with X, divided by its length s; a column whose s is no more than round-off
    is 0 there, as it has no direction. Not differentiable: use `svd_right_vectors`.
    """
    x = lax.stop_gradient(x)
    wide = x.shape[1] < x.shape[2]
    gram = _matmul("bik,bjk->bij", x, x) if wide else _matmul("bki,bkj->bij", x, x)
    known = parallel.map_examples(jnp.linalg.eigh, gram)[1][:, :, ::-1]
    other = _matmul("bkc,bkr->bcr", x, known) if wide else _matmul("bkc,bcr->bkr", x, known)
    s = jnp.linalg.norm(other, axis=1)
    other = other * _reciprocal(s, round_off(s, *x.shape[1:]))[:, None, :]
    return SVD(s, known, other) if wide else SVD(s, other, known)


def decompose(x: Float[Array, "B HW C"], backend: str = "auto") -> SVD:
    """`thin_svd` or `eigen_svd`; "auto" takes the faster one.

    Raises ValueError for an unknown back end.
    """
    if backend not in BACKENDS:
        raise ValueError(f"svd backend is {backend!r}, but must be one of {', '.join(BACKENDS)}.")
    if backend == "auto":
        backend = faster_backend(*x.shape[1:])
    return eigen_svd(x) if backend == "eigen" else thin_svd(x)


def faster_backend(rows: int, columns: int) -> str:
    """ "svd" or "eigen" for a map of HW x C.

    Measured with LAPACK on a CPU core, milliseconds an image, svd / eigen: 1 x 64 0.004 / 0.010, 2 x 64 0.005 / 0.009,
    4 x 512 0.034 / 0.011, 64 x 64 0.32 / 0.23, 64 x 256 10 / 2.3, 256 x 128 20 / 8.8, 1024 x 64 54 / 3.2.
    """
    return "svd" if min(rows, columns) <= 2 else "eigen"


def truncate(decomposition: SVD, n: int) -> SVD:
    """The first n columns, non-finite entries 0, then s over its n entries and every column of u and v at length 1.

    (So for n = 1 s is 1.) Source: toolbox.
    """
    s, u, v = (jnp.where(jnp.isfinite(part), part, 0)[..., :n] for part in decomposition)
    return SVD(l2_normalize(s), l2_normalize(u, 1), l2_normalize(v, 1))


def canonical_sign(v: Float[Array, "B C r"]) -> Float[Array, "B 1 r"]:
    """+1 or -1 per column, so that sign times column has its largest entry by size positive: the sign of max + min.

    A decomposition leaves the sign of every vector open, and the relation of two vectors depends on it; with this rule
    the losses do not depend on how the vectors were computed. Source: IEP's official code.
    """
    balance = jnp.max(v, axis=1, keepdims=True) + jnp.min(v, axis=1, keepdims=True)
    return lax.stop_gradient(jnp.where(balance >= 0, 1, -1).astype(v.dtype))


def leading_triplet(x: Float[Array, "B HW C"], top1: str = "auto", canonical: bool = True) -> SVD:
    """The largest singular value with its vectors (r = 1), without gradient: all that is needed of a teacher.

    Args:
      top1: "power" for power iterations, or a back end of `decompose`; "auto": power, by far the fastest (1024 x 64:
        0.2 ms an image against 3.2 of "eigen"), where there are more than 2 rows and columns. The iterations need
        (s_1 / s_0)^256 to be small, true of maps after a ReLU, whose mean dominates.
      canonical: give v the sign of `canonical_sign`, and u the same.
    """
    if top1 not in LEADING:
        raise ValueError(f"top1 is {top1!r}, but must be one of {', '.join(LEADING)}.")
    x = lax.stop_gradient(x)
    if top1 == "auto" and min(x.shape[1:]) > 2:
        top1 = "power"
    found = _power(x) if top1 == "power" else SVD(*(part[..., :1] for part in decompose(x, top1)))
    if not canonical:
        return found
    sign = canonical_sign(found.v)
    return SVD(found.s, found.u * sign, found.v * sign)


def _power(x: Float[Array, "B HW C"]) -> SVD:
    """Power iterations on the smaller Gram matrix, scaled to a trace of 1; a map of zeros gives zeros."""
    wide = x.shape[1] < x.shape[2]
    gram = _matmul("bik,bjk->bij", x, x) if wide else _matmul("bki,bkj->bij", x, x)
    trace = jnp.trace(gram, axis1=1, axis2=2)[:, None, None]
    gram = gram * _reciprocal(trace, 0)
    # The longest column has a share of the leading vector for certain; a fixed start could be orthogonal to it.
    longest = jnp.argmax(jnp.diagonal(gram, axis1=1, axis2=2), axis=1)
    start = jnp.take_along_axis(gram, longest[:, None, None], axis=2)[..., 0]

    def step(_: Any, vector: Array) -> Array:
        return _unit(_matmul("bij,bj->bi", gram, vector))

    known = lax.fori_loop(0, POWER_ITERATIONS, step, _unit(start))
    other = _matmul("bkc,bk->bc", x, known) if wide else _matmul("bkc,bc->bk", x, known)
    s = jnp.linalg.norm(other, axis=1, keepdims=True)
    known, other = known[..., None], (other * _reciprocal(s, 0))[..., None]
    return SVD(s, known, other) if wide else SVD(s, other, known)


def _unit(vector: Float[Array, "B k"]) -> Float[Array, "B k"]:
    return vector * _reciprocal(jnp.linalg.norm(vector, axis=1, keepdims=True), 0)


def _reciprocal(x: Array, least: Array | float | int, epsilon: float = 0.0) -> Array:
    """1 / (x + epsilon) where |x| is above `least`, 0 elsewhere."""
    defined = jnp.abs(x) > least
    return jnp.where(defined, 1 / jnp.where(defined, x + epsilon, 1), 0)


def _inverse_gaps(s: Float[Array, "B r"]) -> Float[Array, "B r r"]:
    """K_ij = 1 / (s_i² - s_j²), 0 on the diagonal and where the two are equal but for round-off."""
    square = jnp.square(s)
    least = jnp.finfo(s.dtype).eps * square[:, :1, None]
    return _reciprocal(square[:, :, None] - square[:, None, :], least)


def truncated_svd_vjp(
    decomposition: SVD, dv: Float[Array, "B C m"], gradient: str = "toolbox"
) -> Float[Array, "B HW C"]:
    """Cotangent of X from that of the first m right vectors; those of s and U are 0.

    With K_ij = 1 / (s_i² - s_j²), 0 where i = j or the two are equal; sym(A) = (A + Aᵀ) / 2; E = dV diag(1/s):

        HW >= C:  dX = 2 U S sym(Kᵀ o VᵀdV) Vᵀ
        HW < C:   dX = U Eᵀ - U diag(diag(EᵀV)) Vᵀ - 2 U sym(K o (S VᵀE)) S Vᵀ

    which at full rank is the derivative. What is not defined (ties, singular values of 0) counts as 0.

    Args:
      gradient:
        paper: from the leading min(5, r) vectors alone (m is cut to these).
        published: what the first repository computes: its K is always 0, hence exactly 0 where HW >= C.
        toolbox: all r vectors, sym without its half, 1 / (s + 1e-8) in E.
        exact: all r vectors.

    Raises ValueError for an unknown variant.
    """
    if gradient not in GRADIENTS:
        raise ValueError(f"svd_gradient is {gradient!r}, but must be one of {', '.join(GRADIENTS)}.")
    s, u, v = decomposition
    rows, columns = u.shape[1], v.shape[1]
    least = round_off(s, rows, columns)
    if gradient in ("paper", "published"):
        s, u, v, dv = (part[..., :PAPER_RANK] for part in (s, u, v, dv))
    dv = jnp.pad(dv, ((0, 0), (0, 0), (0, s.shape[1] - dv.shape[2])))
    half = 1.0 if gradient == "toolbox" else 0.5
    gaps = jnp.zeros((*s.shape, s.shape[1]), s.dtype) if gradient == "published" else _inverse_gaps(s)

    def sym(a: Array) -> Array:
        return half * (a + jnp.swapaxes(a, 1, 2))

    if rows >= columns:
        inner = 2 * s[:, :, None] * sym(-gaps * _matmul("bci,bcj->bij", v, dv))  # Kᵀ = -K
        return _matmul("bki,bij,bcj->bkc", u, inner, v)
    e = dv * _reciprocal(s, least, 1e-8 if gradient == "toolbox" else 0.0)[:, None, :]
    product = _matmul("bci,bcj->bij", v, e)
    inner = 2 * sym(gaps * (s[:, :, None] * product)) * s[:, None, :]
    inner = inner + jnp.eye(s.shape[1], dtype=s.dtype)[None] * product
    return _matmul("bki,bci->bkc", u, e - _matmul("bcj,bij->bci", v, inner))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def svd_right_vectors(
    x: Float[Array, "B HW C"], count: int, gradient: str = "toolbox", backend: str = "auto"
) -> Float[Array, "B C count"]:
    """The first min(count, r) right singular vectors, each of length 1, with the derivative of `truncated_svd_vjp`.

    Args:
      backend: as `decompose` takes it. A vector of a vanishing singular value is 0, whatever the back end.
    """
    return _right_vectors(decompose(x, backend), x.shape, count)


def _right_vectors(decomposition: SVD, shape: tuple[int, ...], count: int) -> Float[Array, "B C count"]:
    s, _, v = decomposition
    defined = s > round_off(s, *shape[1:])
    return (v * defined[:, None, :])[..., :count]


def _forward(x, count, gradient, backend):
    decomposition = decompose(x, backend)
    return _right_vectors(decomposition, x.shape, count), decomposition


def _backward(count, gradient, backend, decomposition, dv):
    del count, backend
    return (truncated_svd_vjp(decomposition, dv, gradient),)


svd_right_vectors.defvjp(_forward, _backward)
