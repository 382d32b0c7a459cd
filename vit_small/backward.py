"""What blocks keep for their backward pass, and derivatives of attention's products in an order that suits XLA.

Both change the time and the memory of a step, not its numbers.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.lax import optimization_barrier
from jaxtyping import Array, Float

KEPT = "kept"


def kept(x: Array) -> Array:
    """x, which the backward pass of a block reads; everything without this name it computes again (`layers.stack`).

    Named are results of matrix products, sums of a softmax and the stream between the branches, so that nothing but
    normalisation, softmax, GELU and the product behind the logits is done twice: less to write and to read than if all
    were kept. (Of CaiT's blocks, which have an attention of their own, only the MLP names anything.)
    """
    return checkpoint_name(x, KEPT)


@jax.custom_vjp
def matmul(a: Float[Array, "*batch n k"], b: Float[Array, "*batch k d"]) -> Float[Array, "*batch n d"]:
    """a @ b, at least in float32.

    In the derivatives the smaller factor is transposed: XLA's program for CPUs is 1.4 times slower with the sum over
    the rows that a^T c is, and makes one of any transposition in sight, hence the barriers.
    """
    return jnp.matmul(a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _forward(a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return matmul(a, b), (a, b)


def _backward(factors: tuple[Array, Array], c: Array) -> tuple[Array, Array]:
    a, b = factors
    of_a = matmul(c, _transpose(b))
    if a.size <= c.size:
        of_b = optimization_barrier(matmul(optimization_barrier(_transpose(a)), c))
    else:
        of_b = _transpose(optimization_barrier(matmul(optimization_barrier(_transpose(c)), a)))
    return of_a.astype(a.dtype), of_b.astype(b.dtype)


def _transpose(x: Float[Array, "*batch n m"]) -> Float[Array, "*batch m n"]:
    return jnp.swapaxes(x, -1, -2)


matmul.defvjp(_forward, _backward)
