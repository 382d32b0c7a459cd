"""What the modules of MHGD and IEP are made of: fully connected layers, BatchNorm over a batch or over its pairs.

Parameters and moving statistics are nested dicts with the same names, {layer: {"kernel", "bias"}} and {normalisation:
{"scale", "bias"}}, {normalisation: {"mean", "variance"}}. Modules are small, and run with batch statistics, with moving
ones, and without updating them, all inside one loss: plain functions say which at each call.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

BN_EPSILON = 1e-5
BN_DECAY = 0.9
WEIGHT_DECAY = 5e-4  # of the modules: times the sum of squares without 1/2, BatchNorm included

Tree = dict[str, Any]


def init_dense(key: Array, inputs: int, outputs: int, bias: bool = False) -> Tree:
    """A layer with normal weights of variance 2 / inputs, and a bias of 0."""
    kernel = jax.random.normal(key, (inputs, outputs)) * jnp.sqrt(2 / inputs)
    return {"kernel": kernel, "bias": jnp.zeros(outputs)} if bias else {"kernel": kernel}


def init_norm(width: int) -> tuple[Tree, Tree]:
    """(scale 1 and bias 0, moving mean 0 and variance 1)."""
    return (
        {"scale": jnp.ones(width), "bias": jnp.zeros(width)},
        {"mean": jnp.zeros(width), "variance": jnp.ones(width)},
    )


def dense(params: Tree, x: Float[Array, "*n d"]) -> Float[Array, "*n e"]:
    """x W (+ b) in full float32: KL sums over whole graphs are not averaged."""
    y = jnp.matmul(x, params["kernel"], precision=lax.Precision.HIGHEST)
    return y + _row(params["bias"], y) if "bias" in params else y


def batch_norm(
    params: Tree, stats: Tree, x: Float[Array, "*n d"], training: bool, unbiased: bool = True
) -> tuple[Float[Array, "*n d"], Tree]:
    """Normalise each of the d channels over all other axes; returns (y, new moving statistics).

    Args:
      training: use the batch's own mean and (biased) variance and move the statistics towards them; else use the moving
        ones, and return them as they are.
      unbiased: move towards the unbiased variance, as TensorFlow's fused layer does for `[B, d]`; False for pairs.
    """
    if training:
        axes = tuple(range(x.ndim - 1))
        mean, variance = jnp.mean(x, axis=axes), jnp.var(x, axis=axes)
        count = x.size // x.shape[-1]
        stored = variance * (count / max(count - 1, 1)) if unbiased else variance
        new = {"mean": _moved(stats["mean"], mean), "variance": _moved(stats["variance"], stored)}
    else:
        mean, variance, new = stats["mean"], stats["variance"], stats
    scale = params["scale"] * lax.rsqrt(variance + BN_EPSILON)
    return (x - _row(mean, x)) * _row(scale, x) + _row(params["bias"], x), new


def _moved(old: Array, new: Array) -> Array:
    return BN_DECAY * old + (1 - BN_DECAY) * lax.stop_gradient(new)


def _row(vector: Float[Array, " d"], x: Float[Array, "*n d"]) -> Array:
    """The vector with as many axes as x."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def kl_rows(p: Float[Array, "*n B"], q: Float[Array, "*n B"]) -> Float[Array, ""]:
    """Σ over rows of KL(softmax p || softmax q), both given as logits; not averaged."""
    log_p, log_q = jax.nn.log_softmax(p, axis=-1), jax.nn.log_softmax(q, axis=-1)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q))


def weight_decay(params: Any, strength: float = WEIGHT_DECAY) -> Float[Array, ""]:
    """strength · Σ |p|² over all parameters of the modules (no 1/2, BatchNorm's too). Source: toolbox."""
    return strength * sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)), jnp.zeros(()))
