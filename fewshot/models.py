"""Conv4, the four-block network of the few-shot literature, with the variants of the MAML++ code base.

Normalisation always uses the statistics of the batch at hand (or statistics that the caller passes in), never
running averages: this is how MAML, MAML++ and CxGrad train *and* test. The statistics are returned instead of
being kept in a mutable collection, so that an inner loop can stay a pure function.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from fewshot import convolution

EPSILON = 1e-5
NEGATIVE_SLOPE = 0.01


class Moments(NamedTuple):
    """Per-channel mean and biased variance of one batch, and how many values each was taken over."""

    mean: Float[Array, " c"]
    variance: Float[Array, " c"]
    count: int | Array


class Output(NamedTuple):
    logits: Float[Array, "n num_classes"]
    features: Float[Array, "n d"]  # the head's input
    moments: dict[str, Moments]  # of each batch-norm layer, by name


def batch_norm(
    x: Float[Array, "n h w c"],
    scale: Float[Array, " c"],
    shift: Float[Array, " c"],
    moments: Moments | None = None,
) -> tuple[Float[Array, "n h w c"], Moments]:
    """Normalise each channel by the batch's own moments, or by `moments` if given (inductive evaluation)."""
    if moments is None:
        mean = jnp.mean(x, axis=(0, 1, 2))
        variance = jnp.mean(jnp.square(x - mean[None, None, None]), axis=(0, 1, 2))
        moments = Moments(mean, variance, x.shape[0] * x.shape[1] * x.shape[2])
    gain = scale * lax.rsqrt(moments.variance + EPSILON)
    offset = shift - moments.mean * gain
    return x * gain[None, None, None] + offset[None, None, None], moments


def layer_norm(x: Float[Array, "n h w c"], shift: Float[Array, "h w c"]) -> Float[Array, "n h w c"]:
    """Normalise each image over channels and space; only the shift is learned (official code)."""
    mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=(1, 2, 3), keepdims=True)
    return (x - mean) * lax.rsqrt(variance + EPSILON) + shift[None]


def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 c"]:
    """2x2 maximum with stride 2; an odd last row or column is dropped.

    On a tie the first entry takes the whole gradient, as in PyTorch (`jnp.maximum` would split it); unlike
    `lax.reduce_window`, comparisons and slices stay cheap when differentiated twice.
    """
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    quarters = [x[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)]
    largest = quarters[0]
    for other in quarters[1:]:
        largest = jnp.where(largest >= other, largest, other)
    return largest


class Conv4(nn.Module):
    """Four times (3x3 convolution, normalisation, leaky ReLU, 2x2 max-pooling), then a linear head.

    Parameters: `conv{i}/kernel [3, 3, c, d]`, `norm{i}/{scale, shift}`, `head/{kernel, bias}`. With `norm_steps` > 0
    scale and shift have a leading axis of that length, one row per inner step (MAML++). The maps after each pooling are
    sown as "intermediates": `block{i}_output [n, h, w, c]`.
    """

    num_classes: int
    filters: int = 48
    norm: str = "batch"  # or "layer"
    norm_steps: int = 0
    pooling: bool = True  # False: stride-2 convolutions and a global average
    conv_bias: bool = False
    dtype: jnp.dtype = jnp.dtype(
        "float32"
    )  # of the convolutions; norms, logits and losses keep the parameters' precision
    conv: Callable = convolution.native

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        step: int | Int[Array, ""] = 0,
        moments: dict[str, Moments] | None = None,
    ) -> Output:
        """Logits of images `x`, with the norm parameters of inner step `step`; see `batch_norm` for `moments`."""
        seen: dict[str, Moments] = {}
        for i in range(4):
            stride = 1 if self.pooling else 2
            x = Convolution(self.filters, stride, self.conv_bias, self.dtype, self.conv, name=f"conv{i}")(x)
            if self.norm == "batch":
                given = None if moments is None else moments[f"norm{i}"]
                x, seen[f"norm{i}"] = BatchNorm(self.norm_steps, name=f"norm{i}")(x, step, given)
            else:
                x = LayerNorm(name=f"norm{i}")(x)
            x = jnp.where(x >= 0, x, NEGATIVE_SLOPE * x)
            if self.pooling:
                x = max_pool(x)
            self.sow("intermediates", f"block{i}_output", x)
        features = x.reshape(x.shape[0], -1) if self.pooling else x.mean(axis=(1, 2))
        logits = Head(self.num_classes, name="head")(features)
        return Output(logits, features, seen)


class Convolution(nn.Module):
    """3x3 convolution, computed in `dtype`; the result has the parameters' precision."""

    filters: int
    stride: int
    use_bias: bool
    dtype: jnp.dtype
    conv: Callable

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (3, 3, x.shape[-1], self.filters))
        precision = kernel.dtype
        if self.dtype != jnp.float32:
            x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        x = self.conv(x, kernel, self.stride).astype(precision)
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.filters,))[None, None, None]
        return x


class BatchNorm(nn.Module):
    """`batch_norm` with the scale and shift of inner step `step` if there is a row of them per step."""

    steps: int

    @nn.compact
    def __call__(self, x, step, moments):
        shape = (self.steps, x.shape[-1]) if self.steps else (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        shift = self.param("shift", nn.initializers.zeros, shape)
        if self.steps:
            scale, shift = scale[step], shift[step]
        return batch_norm(x, scale, shift, moments)


class LayerNorm(nn.Module):
    """`layer_norm` with a learned shift of the shape of one image."""

    @nn.compact
    def __call__(self, x):
        return layer_norm(x, self.param("shift", nn.initializers.zeros, x.shape[1:]))


class Head(nn.Module):
    """Linear layer from features [n, d] to logits."""

    num_classes: int

    @nn.compact
    def __call__(self, features):
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (features.shape[-1], self.num_classes))
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        return features @ kernel + bias[None]
