"""ResNet-12 as the gradient-based few-shot literature uses it (code of ALFA, Baik et al. 2020): no dropout of any kind.

Four residual blocks of three 3x3 convolutions beside a 1x1 shortcut, then a global average and a linear head. As in
`models.py`, normalisation uses the statistics of the batch at hand, which are returned.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fewshot import convolution
from fewshot.models import BatchNorm, Convolution, Head, Moments, Output, max_pool

POOLING_PADDING = (0, 0, 1, None)  # of each block's 2x2 pooling; the last block has none


def padded_max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2+1 w//2+1 c"]:
    """2x2 maximum with stride 2 after a border of minus infinity: no value is dropped, odd sizes are rounded up."""
    border = ((0, 0), (1, 1), (1, 1), (0, 0))
    return max_pool(jnp.pad(x, border, constant_values=-jnp.inf))


class ResNet12(nn.Module):
    """Four residual blocks with 1, 2, 4 and 8 times `filters` channels; 84 px become 42, 21, 11, 11.

    Parameters: `block{i}/conv{1,2,3}/kernel [3, 3, c, d]`, `block{i}/shortcut/kernel [1, 1, c, d]`, the norm after
    each of them, `block{i}/norm{1,2,3}` and `block{i}/norm_shortcut`, with scale and shift, and `head/{kernel, bias}`.
    Sorted by path, the kernels are in the order conv1, conv2, conv3, shortcut of block after block, which is the order
    of CxGrad's 16 scale factors. The blocks' outputs are sown as "intermediates": `block{i}_output [n, h, w, c]`.
    """

    num_classes: int
    filters: int = 64
    norm_steps: int = 0  # rows of scale and shift, see models.Conv4
    dtype: jnp.dtype = jnp.dtype("float32")  # of the convolutions
    conv: Callable = convolution.native

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        step: int | Int[Array, ""] = 0,
        moments: dict[str, Moments] | None = None,
    ) -> Output:
        """Logits of images `x`, with the norm parameters of inner step `step`; see `models.batch_norm` for `moments`,
        whose keys are "block0/norm1" and so on."""
        seen: dict[str, Moments] = {}
        for i, padding in enumerate(POOLING_PADDING):
            block = ResidualBlock(
                2**i * self.filters, padding, self.norm_steps, self.dtype, self.conv, name=f"block{i}"
            )
            own = None if moments is None else {name: moments[f"block{i}/{name}"] for name in NORMS}
            x, new = block(x, step, own)
            seen |= {f"block{i}/{name}": value for name, value in new.items()}
            self.sow("intermediates", f"block{i}_output", x)
        features = x.mean(axis=(1, 2))
        return Output(Head(self.num_classes, name="head")(features), features, seen)


NORMS = ("norm1", "norm2", "norm3", "norm_shortcut")


class ResidualBlock(nn.Module):
    """relu(conv-norm-relu-conv-norm-relu-conv-norm + conv1x1-norm), then pooling with `padding` (None: no pooling)."""

    filters: int
    padding: int | None
    norm_steps: int
    dtype: jnp.dtype
    conv: Callable

    @nn.compact
    def __call__(self, x, step, moments):
        seen: dict[str, Moments] = {}

        def normalize(x, name):
            x, seen[name] = BatchNorm(self.norm_steps, name=name)(x, step, None if moments is None else moments[name])
            return x

        y = x
        for k in (1, 2, 3):
            y = Convolution(self.filters, 1, False, self.dtype, self.conv, name=f"conv{k}")(y)
            y = normalize(y, f"norm{k}")
            if k < 3:
                y = jax.nn.relu(y)
        shortcut = normalize(Projection(self.filters, self.dtype, name="shortcut")(x), "norm_shortcut")
        y = jax.nn.relu(y + shortcut)
        if self.padding is not None:
            y = padded_max_pool(y) if self.padding else max_pool(y)
        return y, seen


class Projection(nn.Module):
    """1x1 convolution as a matmul, which stays one under `vmap` over kernels."""

    filters: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (1, 1, x.shape[-1], self.filters))
        precision = kernel.dtype
        if self.dtype != jnp.float32:
            x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return (x @ kernel[0, 0]).astype(precision)
