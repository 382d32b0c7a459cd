"""Ranks, masks, and convolutions whose kernels keep their norm when channels are masked.

A gate's state is a rank (a permutation of its channels, 0 = most important) and how many channels it keeps. Source:
official code (spec section 4); section 12 for the form with shared kernels.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

TINY = 1e-12


def ranks(score: Float[Any, " c"]) -> Int[np.ndarray, " c"]:
    """Rank of each channel, 0 = highest score; of equal scores the lower index comes first."""
    order = np.argsort(-np.asarray(score), kind="stable")
    return np.argsort(order, kind="stable").astype(np.int32)


def keep_count(channels: int, rate: float) -> int:
    """Channels that the official code keeps at this rate: those with rank < max(channels * rate, 1), in float32.

    That is max(ceil(channels * rate), 1), but for products that rounding puts a hair above a whole number.
    """
    bound = max(np.float32(channels) * np.float32(rate), np.float32(1))
    return int(np.count_nonzero(np.arange(channels, dtype=np.float32) < bound))


def mask(rank: Int[np.ndarray, " c"], keep: int | np.integer) -> Float[np.ndarray, " c"]:
    """1 for the `keep` channels of lowest rank, 0 for the others."""
    return (rank < keep).astype(np.float32)


def masked_kernel(
    kernel: Float[Any, "*window i o"], in_mask: Float[Any, " i"] | None, out_mask: Float[Any, " o"] | None
) -> Float[Any, "*window i o"]:
    """The kernel with masked channels at 0 and the others scaled so that its Frobenius norm is what it was."""
    masked, window = kernel, tuple(range(kernel.ndim - 2))
    if in_mask is not None:
        masked = masked * jnp.expand_dims(in_mask, (*window, -1))
    if out_mask is not None:
        masked = masked * jnp.expand_dims(out_mask, (*window, -2))
    norm = jnp.sqrt(jnp.sum(kernel**2))
    return masked * lax.rsqrt(jnp.maximum(jnp.sum(masked**2), TINY)) * norm


def norm_scales(
    kernel: Float[Any, "*window i o"], in_mask: Float[Any, "k i"] | None, out_mask: Float[Any, "k o"] | None
) -> Float[Any, " k"]:
    """What `masked_kernel` multiplies by, for each of k candidates: sqrt(sum Q / (m_in^T Q m_out)), Q = sum of k^2."""
    energy = jnp.sum(kernel**2, axis=tuple(range(kernel.ndim - 2)))
    rows = energy.sum(0)[None] if in_mask is None else in_mask @ energy
    kept = rows if out_mask is None else rows * out_mask
    return jnp.sqrt(energy.sum() / jnp.maximum(kept.sum(1), TINY))


def convolve(x: Array, kernel: Array, stride: int, depthwise: bool) -> Array:
    """'SAME' convolution as TensorFlow pads it, [n, h, w, i] -> [n, h', w', o]."""
    groups = x.shape[-1] if depthwise else 1
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


def masked_convolution(
    x: Float[Any, "*k n h w i"],
    kernel: Float[Any, "a b j o"],
    in_mask: Float[Any, "*k i"] | None,
    out_mask: Float[Any, "*k o"] | None,
    stride: int = 1,
    depthwise: bool = False,
) -> Float[Any, "*k n h2 w2 o"]:
    """Convolution between two gates; without masks a plain one.

    With a leading axis of candidates the kernel is shared: conv(x m_in, k m_in m_out) = conv(x m_in, k) m_out, so a
    candidate needs only its masks and one number. There `x` must be masked already, which behind a gate it is.
    """
    if depthwise:  # its one mask stands for input and output; the kernel is [a, b, 1, o]
        in_mask, out_mask = None, in_mask
    if x.ndim == 4:
        if in_mask is not None or out_mask is not None:
            kernel = masked_kernel(kernel, in_mask, out_mask)
        return convolve(x, kernel, stride, depthwise)
    y = convolve(x.reshape(-1, *x.shape[2:]), kernel, stride, depthwise)
    y = y.reshape(*x.shape[:2], *y.shape[1:])
    if in_mask is None and out_mask is None:
        return y
    y = y * norm_scales(kernel, in_mask, out_mask)[:, None, None, None, None]
    return y if out_mask is None else y * out_mask[:, None, None, None]


def masked_dense(
    x: Float[Any, "*k n i"], kernel: Float[Any, "i o"], in_mask: Float[Any, "*k i"] | None
) -> Float[Any, "*k n o"]:
    """Product with a kernel between a gate and the classes; see `masked_convolution`."""
    if in_mask is None:
        return x @ kernel
    if x.ndim == 2:
        return x @ masked_kernel(kernel, in_mask, None)
    return x @ kernel * norm_scales(kernel, in_mask, None)[:, None, None]
