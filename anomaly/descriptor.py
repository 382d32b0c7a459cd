"""The patch descriptor φ, the only network that CFA trains: pooled taps at one size, coordinates, a 1x1 convolution.

φ is affine in the taps, so the 1x1 convolution can be applied to each tap at the tap's own resolution and the result
resized and added up: the same numbers for a fraction of the work (`commuted`). Arrays are [B, height, width, channel].
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Taps = Sequence[Float[Array, "B _ _ _"]]


def pool_taps(taps: Taps, divide_by_channels: bool = False) -> Taps:
    """3x3 means of every tap, stride 1; border cells count as zeros and the divisor is always 9 (official code).

    `divide_by_channels`: EfficientNet-B5's taps are then divided by their number of channels.
    """
    border: Any = ((1, 1), (1, 1))
    pooled = [nn.avg_pool(tap, (3, 3), (1, 1), border, count_include_pad=True) for tap in taps]
    return tuple(tap / tap.shape[-1] if divide_by_channels else tap for tap in pooled)


def resize_map(x: Float[Array, "B h w c"], height: int, width: int) -> Float[Array, "B H W c"]:
    """Bilinear enlargement with half-pixel centres, clamped at the edge (`align_corners=False`)."""
    if x.shape[1:3] == (height, width):
        return x
    return jax.image.resize(x, (x.shape[0], height, width, x.shape[3]), "bilinear", precision=lax.Precision.HIGHEST)


def aggregate_taps(pooled: Taps) -> Float[Array, "B h w sum_c"]:
    """All pooled taps at the size of the first, channels one after the other."""
    height, width = pooled[0].shape[1:3]
    return jnp.concatenate([resize_map(tap, height, width) for tap in pooled], axis=-1)


def coordinate_channels(height: int, width: int) -> Float[Array, "h w 2"]:
    """CoordConv's two channels in [-1, 1]: the first varies with the row, the second with the column.

    A single row or column has the coordinate 0 (the official code divides by zero there).
    """

    def axis(size: int) -> Float[Array, " size"]:
        return 2 * jnp.arange(size, dtype=float) / (size - 1) - 1 if size > 1 else jnp.zeros(1)

    rows, columns = jnp.meshgrid(axis(height), axis(width), indexing="ij")
    return jnp.stack([rows, columns], axis=-1)


def descriptor_width(channels: Sequence[int], gamma_d: int, factor: int = 1) -> int:
    """D = factor * ΣC // γ_d; the factor is 2 for EfficientNet-B5 and 1 for the others."""
    return factor * sum(channels) // gamma_d


class PatchDescriptor(nn.Module):
    """1x1 CoordConv from pooled taps to descriptors [B, h, w, D]; no norm, no activation.

    Parameters: kernel [ΣC + 2, D] (taps in order, then row and column coordinate), bias [D]; both drawn from
    U(-b, b), b = 1/√(ΣC + 2), as PyTorch does.
    """

    width: int
    commuted: bool = True

    @nn.compact
    def __call__(self, pooled: Taps) -> Float[Array, "B h w D"]:
        height, width = pooled[0].shape[1:3]
        fan_in = sum(tap.shape[-1] for tap in pooled) + 2

        def uniform(key, shape):
            bound = fan_in**-0.5
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        kernel = self.param("kernel", uniform, (fan_in, self.width))
        bias = self.param("bias", uniform, (self.width,))
        # Coordinates and bias are channels of the first product, so that their gradients are no sums of their own.
        fixed = coordinate_channels(height, width).astype(kernel.dtype)
        fixed = jnp.concatenate([fixed, jnp.ones_like(fixed[..., :1])], axis=-1)
        fixed = jnp.broadcast_to(fixed, (*pooled[0].shape[:3], 3))
        last = jnp.concatenate([kernel[-2:], bias[None]])
        if not self.commuted:
            aggregated = jnp.concatenate([aggregate_taps(pooled), fixed], axis=-1)
            return _dot(aggregated, jnp.concatenate([kernel[:-2], last]))
        first = pooled[0].shape[-1]
        out = _dot(jnp.concatenate([pooled[0], fixed], axis=-1), jnp.concatenate([kernel[:first], last]))
        for tap in pooled[1:]:
            part = kernel[first : first + tap.shape[-1]]
            out = out + resize_map(_dot(tap, part), height, width)
            first += tap.shape[-1]
        return out


def _dot(x: Array, kernel: Array) -> Array:
    # Full float32 also where an accelerator would round its inputs: distances between descriptors cancel.
    return jnp.matmul(x, kernel, precision=lax.Precision.HIGHEST)
