"""LSA, locality self-attention (Lee, Lee, Song 2021, section 3.2): a learned temperature and a masked diagonal.

The learned number s multiplies the logits, so the temperature of the paper is 1/s; it starts at sqrt(d) and is free to
take any value. Arrays are [B, heads, tokens, width of a head]; logits are [B, heads, query, key].
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vit_small.backward import kept, matmul

OFFICIAL_ZERO = -1e-9  # what CaiT's official code puts on the diagonal, before it mixes the heads: no mask at all


def diagonal(tokens: int) -> Bool[Array, "1 1 N N"]:
    """Where a token looks at itself. Raises ValueError for a single token, which would have nothing to look at."""
    if tokens < 2:
        raise ValueError("a masked diagonal needs at least two tokens: one alone would have nothing to attend to.")
    return jnp.eye(tokens, dtype=bool)[None, None]


def logits_of(
    q: Float[Array, "B h N d"], k: Float[Array, "B h M d"], inverse_temperature: Float[Array, " t"] | float
) -> Float[Array, "B h N M"]:
    """s <q, k>, at least in float32; `inverse_temperature` is one per head, one for all [1], or a fixed number."""
    s = jnp.reshape(jnp.asarray(inverse_temperature, q.dtype), (1, -1, 1, 1))
    return matmul(q * s, jnp.swapaxes(k, -1, -2))


def attend(
    q: Float[Array, "B h N d"],
    k: Float[Array, "B h M d"],
    v: Float[Array, "B h M d"],
    inverse_temperature: Float[Array, " t"] | float,
    *,
    mask_diagonal: bool,
    bias: Float[Array, "b h N M"] | None = None,
) -> tuple[Float[Array, "B h N d"], Float[Array, "B h N M"]]:
    """(outputs, probabilities): softmax over keys of s <q, k> + bias, the diagonal at -inf before the softmax.

    The masked entries are constants: no gradient goes through them, to s or to q and k.
    """
    logits = logits_of(q, k, inverse_temperature)
    if bias is not None:
        logits = logits + bias
    if mask_diagonal:
        logits = logits + jnp.where(diagonal(q.shape[2]), -jnp.inf, 0.0)
    # The softmax is divided by its sums behind the product with v, which is smaller than the probabilities.
    largest = kept(jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    weights = jnp.exp(logits - largest)
    sums = kept(jnp.sum(weights, axis=-1, keepdims=True))
    outputs = kept(matmul(weights.astype(v.dtype), v).astype(v.dtype)) / sums.astype(v.dtype)
    return outputs, weights / sums


def attend_with_talking_heads(
    q: Float[Array, "B h N d"],
    k: Float[Array, "B h M d"],
    v: Float[Array, "B h M d"],
    inverse_temperature: Float[Array, " t"] | float,
    mix_before: Float[Array, "h h"],
    mix_after: Float[Array, "h h"],
    *,
    mask_diagonal: bool,
    strict: bool = False,
) -> tuple[Float[Array, "B h N d"], Float[Array, "B h N M"]]:
    """CaiT's attention: heads are mixed before and after the softmax. Probabilities are those before `mix_after`.

    The official mask sets the diagonal to (almost) 0 before the mixing, which hides nothing; `strict` sets it to -inf
    behind the mixing, as LSA means it.
    """
    logits = logits_of(q, k, inverse_temperature)
    if mask_diagonal and not strict:
        logits = jnp.where(diagonal(q.shape[2]), OFFICIAL_ZERO, logits)
    logits = jnp.einsum("bhnm,hg->bgnm", logits, mix_before)
    if mask_diagonal and strict:
        logits = jnp.where(diagonal(q.shape[2]), -jnp.inf, logits)
    probabilities = jax.nn.softmax(logits, axis=-1)
    mixed = jnp.einsum("bhnm,hg->bgnm", probabilities, mix_after)
    return matmul(mixed.astype(v.dtype), v).astype(v.dtype), probabilities
