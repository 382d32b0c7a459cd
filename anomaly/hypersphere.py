"""Coupled hyperspheres (CFA; official code): distances of patches to the bank, attraction, repulsion."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

LARGEST_BLOCK = 1 << 26  # distances held at once (256 MiB in float32), where the chunk is chosen here


def pairwise_sq_distances(phi: Float[Array, "B N D"], bank: Float[Array, "M D"]) -> Float[Array, "B N M"]:
    """|φ - c|² = |φ|² + |c|² - 2 φ·c of every patch to every bank entry, at least 0.

    The differences cancel, so the products are full float32; round-off below 0 is clamped (the official code gets NaN
    from its square root there).
    """
    cross = jnp.einsum("bnd,md->bnm", phi, bank, precision=lax.Precision.HIGHEST)
    squares = jnp.sum(jnp.square(phi), axis=-1)[:, :, None], jnp.sum(jnp.square(bank), axis=-1)[None, None]
    return jnp.maximum(squares[0] + squares[1] - 2 * cross, 0)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def nearest_sq_distances(
    phi: Float[Array, "B N D"], bank: Float[Array, "M D"], count: int, chunk: int = 0
) -> Float[Array, "B N count"]:
    """The `count` smallest squared distances of every patch, ascending; gradients reach the patches only.

    Args:
      count: number of neighbours, at most M.
      chunk: patches whose M distances exist at once; 0 chooses one that keeps blocks below `LARGEST_BLOCK`.

    The backward pass uses dd/dφ = 2 (φ - c) of the chosen entries alone: no [B, N, M] array is kept or scattered into.
    """
    return _nearest(phi, bank, count, chunk)[0]


def _nearest(
    phi: Float[Array, "B N D"], bank: Float[Array, "M D"], count: int, chunk: int
) -> tuple[Float[Array, "B N count"], Int[Array, "B N count"]]:
    batch, patches, width = phi.shape
    chunk = min(chunk or max(1, LARGEST_BLOCK // (batch * bank.shape[0])), patches)

    def nearest(block):
        # Without the barrier XLA merges later slices of the result into top_k and then sorts all M: 30 times slower.
        negative, indices = lax.optimization_barrier(lax.top_k(-pairwise_sq_distances(block, bank), count))
        return -negative, indices

    if chunk == patches:
        return nearest(phi)
    chunks = -(-patches // chunk)
    padded = jnp.pad(phi, ((0, 0), (0, chunks * chunk - patches), (0, 0)))
    blocks = jnp.moveaxis(padded.reshape(batch, chunks, chunk, width), 1, 0)

    def joined(found):
        return jnp.moveaxis(found, 0, 1).reshape(batch, chunks * chunk, count)[:, :patches]

    distances, indices = lax.map(nearest, blocks)
    return joined(distances), joined(indices)


def _nearest_forward(phi, bank, count, chunk):
    distances, indices = _nearest(phi, bank, count, chunk)
    return distances, (phi, bank, indices)


def _nearest_backward(count, chunk, kept, cotangent):
    del count, chunk
    phi, bank, indices = kept
    # One neighbour after the other, so that nothing larger than φ itself is gathered; in a loop, because XLA would
    # compute a sum that is written out anew for each product that takes the result.
    pairs = jnp.moveaxis(cotangent, -1, 0)[..., None], jnp.moveaxis(indices, -1, 0)
    pulled, _ = lax.scan(lambda total, pair: (total + pair[0] * bank[pair[1]], None), jnp.zeros_like(phi), pairs)
    return 2 * (jnp.sum(cotangent, axis=-1, keepdims=True) * phi - pulled), jnp.zeros_like(bank)


nearest_sq_distances.defvjp(_nearest_forward, _nearest_backward)


class HypersphereLoss(NamedTuple):
    """L = L_att + L_rep."""

    total: Float[Array, ""]
    attraction: Float[Array, ""]
    repulsion: Float[Array, ""]


def coupled_hypersphere_loss(
    sq_distances: Float[Array, "B N KJ"],
    radius: Float[Array, ""],
    neighbours: int,
    nu: float,
    alpha: float,
) -> HypersphereLoss:
    """Pull patches into the spheres of radius r around their K nearest bank entries, push them out of the next J.

        L_att = mean over b, n, k = 1..K of max(0, d_k - r²) / ν
        L_rep = mean over b, n, j = K+1..K+J of max(0, r² - d_j - α) / ν

    Args:
      sq_distances: the K + J smallest squared distances d of each patch, ascending.
      radius: r; its sign does not matter, and it must not start at 0, where its gradient vanishes.
      neighbours: K. (The official code begins the repulsion at index J; the same, since its K = J.)
    """
    square = jnp.square(radius)
    attraction = jnp.mean(jnp.maximum(sq_distances[..., :neighbours] - square, 0)) / nu
    repulsion = jnp.mean(jnp.maximum(square - sq_distances[..., neighbours:] - alpha, 0)) / nu
    return HypersphereLoss(attraction + repulsion, attraction, repulsion)
