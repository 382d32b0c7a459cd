"""How far each task's embedding of an image lies from the ensemble of all tasks: the metric-based regulariser.

That there is such a term is the paper's (abstract); its forms here are our completion from published metric losses.
Embeddings `z` are [K, n, D] (task, image, dimension), anchors `e` are [n, D]; both have rows of length 1.
Squared distances are 2 - 2 z.e: never a [K, n, n, D] array. No gradient goes through an anchor.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

KINDS = ("npair", "triplet", "center", "pairwise")
MINING = ("all", "nonzero", "hardest")


def norm(u: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """u / sqrt(|u|² + 1e-12); the epsilon inside the root keeps the gradient finite at 0."""
    return u / jnp.sqrt(jnp.sum(u**2, axis=-1, keepdims=True) + 1e-12)


def task_ensemble(u: Float[Array, "K n D"], task_weights: Float[Array, " K"]) -> Float[Array, "n D"]:
    """Anchors e_i = sg(norm(Σ_k w_k norm(u_ki))) of (usually the teacher's) projections, not normalised before."""
    mixed = jnp.sum(task_weights[:, None, None] * norm(u), axis=0)
    return jax.lax.stop_gradient(norm(mixed))


def _products(z: Float[Array, "K n D"], e: Float[Array, "m D"]) -> Float[Array, "K n m"]:
    return jnp.einsum("knd,md->knm", z, e, precision=jax.lax.Precision.HIGHEST)


def _own_products(z: Float[Array, "K n D"], e: Float[Array, "n D"]) -> Float[Array, "K n"]:
    return jnp.sum(z * e[None], axis=-1)


def squared_distances(z: Float[Array, "K n D"], e: Float[Array, "n D"]) -> Float[Array, "K n"]:
    """|z_ki - e_i|² of rows of length 1."""
    return jnp.maximum(2 - 2 * _own_products(z, e), 0.0)


def _mean_valid(values: Float[Array, "K n"], valid: Bool[Array, " n"]) -> Float[Array, " K"]:
    """Mean over the valid images, one number per task; 0 where none is valid."""
    count = jnp.maximum(jnp.sum(valid), 1)
    return jnp.sum(jnp.where(valid[None], values, 0.0), axis=1) / count


def npair_regularizer(
    z: Float[Array, "K n D"], e: Float[Array, "n D"], valid: Bool[Array, " n"], temperature: float | Array
) -> Float[Array, " K"]:
    """N-pair loss in its softmax form [Sohn 2016]: each image's own anchor against those of the batch.

    R_k = mean_i [ logsumexp_j(z_ki.e_j / τ) - z_ki.e_i / τ ], over valid images as anchors and as negatives.
    """
    logits = _products(z, e) / temperature
    logits = jnp.where(valid[None, None], logits, -jnp.inf)
    # An image without an anchor: its row is not used, but must not make a NaN (all its logits may be -inf).
    logits = jnp.where(valid[None, :, None], logits, 0.0)
    own = jnp.diagonal(logits, axis1=1, axis2=2)
    return _mean_valid(jax.nn.logsumexp(logits, axis=-1) - own, valid)


def triplet_regularizer(
    z: Float[Array, "K n D"], e: Float[Array, "n D"], valid: Bool[Array, " n"], margin: float | Array, mining: str
) -> Float[Array, " K"]:
    """Triplet loss [Schroff et al. 2015]: v_kij = margin + d(z_ki, e_i) - d(z_ki, e_j), j another valid image.

    mining: "all": Σ relu(v) over all triplets / their number; "nonzero": / the number of those with v > 0, of all
    tasks; "hardest": only the nearest other anchor of each embedding, without a gradient through that choice.
    Returns R_k with mean over tasks = R, so that "nonzero" divides by the number of all tasks' active triplets.
    """
    tasks, n, _ = z.shape
    products = _products(z, e)
    own = _own_products(z, e)
    # d(z, e_i) - d(z, e_j) without the squares, which cancel.
    values = margin + 2 * (products - own[:, :, None])
    others = valid[None, :] & valid[:, None] & ~jnp.eye(n, dtype=bool)
    if mining == "hardest":
        nearest = jnp.argmax(jnp.where(others[None], products, -jnp.inf), axis=-1)
        hardest = jnp.take_along_axis(values, nearest[..., None], axis=-1)[..., 0]
        return _mean_valid(jax.nn.relu(hardest) * jnp.any(others, axis=1)[None], valid)
    losses = jnp.where(others[None], jax.nn.relu(values), 0.0)
    if mining == "nonzero":
        active = jnp.sum(losses > 0)
        return tasks * jnp.sum(losses, axis=(1, 2)) / jnp.maximum(active, 1)
    return jnp.sum(losses, axis=(1, 2)) / jnp.maximum(jnp.sum(others), 1)


def center_regularizer(
    z: Float[Array, "K n D"], e: Float[Array, "n D"], valid: Bool[Array, " n"], radius: float | Array
) -> Float[Array, " K"]:
    """R_k = mean_i relu(d(z_ki, e_i) - radius): a radius leaves each task room for its own character.

    Alone it admits the same embedding for all images: look at `collapse_statistics`.
    """
    return _mean_valid(jax.nn.relu(2 - 2 * _own_products(z, e) - radius), valid)


def pairwise_regularizer(z: Float[Array, "K n D"]) -> Float[Array, " K"]:
    """R = 2 / (K (K - 1) n) Σ_{k<l} Σ_i d(z_ki, z_li), with a gradient on both sides and no anchor; K >= 2.

    Returns the share of each task, R_k = 1 / ((K - 1) n) Σ_{l≠k} Σ_i d(z_ki, z_li), whose mean is R.
    """
    tasks = z.shape[0]
    products = jnp.einsum("knd,lnd->kln", z, z, precision=jax.lax.Precision.HIGHEST)
    between = jnp.where(jnp.eye(tasks, dtype=bool)[..., None], 0.0, 2 - 2 * products)
    return jnp.sum(jnp.mean(between, axis=2), axis=1) / (tasks - 1)


def make_regularizer(kind: str, temperature: float, margin: float, mining: str, radius: float) -> Any:
    """(z [K, n, D], e [n, D], valid [n]) -> R_k [K], whose mean is R; see the functions of this file."""
    if kind == "pairwise":
        return lambda z, e, valid: pairwise_regularizer(z)
    return {
        "npair": functools.partial(npair_regularizer, temperature=temperature),
        "triplet": functools.partial(triplet_regularizer, margin=margin, mining=mining),
        "center": functools.partial(center_regularizer, radius=radius),
    }[kind]


def collapse_statistics(z: Float[Array, "K n D"]) -> Float[Array, " K"]:
    """Mean over the dimensions of the standard deviation over the batch, of each task's embeddings.

    About 1 / sqrt(D) for embeddings spread over the sphere, near 0 if all images are embedded alike.
    """
    return jnp.mean(jnp.std(z, axis=1), axis=-1)
