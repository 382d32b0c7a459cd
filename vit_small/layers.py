"""Layers that several architectures share, with the official initialisers. Tokens are [B, N, D]."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax import lax
from jaxtyping import Array, Float

from vit_small import lsa, spt
from vit_small.backward import KEPT, kept
from vit_small.design import Design

Layer = Mapping[str, Any]  # of one block: its rate of stochastic depth and, in training, its key

LayerNorm = functools.partial(nn.LayerNorm, epsilon=spt.EPSILON, use_fast_variance=False)


def normal(std: float) -> Callable[..., Array]:
    """Untruncated, unlike Flax's defaults."""
    return nn.initializers.normal(std)


def linear_init(scheme: str, fan_in: int, fan_out: int) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """Initialisers of kernel and bias: "xavier" (ViT, CaiT, PiT), "small" (T2T: std 0.02), "torch" (Swin)."""
    if scheme == "torch":
        bound = fan_in**-0.5

        def uniform(key, shape, dtype=jnp.float32):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return uniform, uniform
    std = (2 / (fan_in + fan_out)) ** 0.5 if scheme == "xavier" else 0.02
    return normal(std), nn.initializers.zeros


class Linear(nn.Module):
    """x @ kernel + bias on the last axis; `kernel_area` counts towards the fans where it stands for a convolution."""

    features: int
    scheme: str
    use_bias: bool = True
    dtype: Any = None
    kernel_area: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "... F"]) -> Float[Array, "... D"]:
        width = x.shape[-1]
        area = self.kernel_area  # a convolution's fan_in has the area in `width` already
        kernel_init, bias_init = linear_init(self.scheme, width, self.features * area)
        kernel = self.param("kernel", kernel_init, (width, self.features))
        bias = self.param("bias", bias_init, (self.features,)) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        # As a matrix: of more axes than two XLA's program for CPUs makes copies before it sums over them in gradients.
        y = lax.dot(x.reshape(-1, width), kernel)
        y = y if bias is None else y + bias[None]
        return y.reshape(*x.shape[:-1], self.features)


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    hidden: int
    scheme: str
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N E"]:
        y = kept(Linear(self.hidden, self.scheme, dtype=self.dtype, name="up")(x))
        return Linear(x.shape[-1], self.scheme, dtype=self.dtype, name="down")(gelu(y))


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x times the normal distribution function, by erf. (`jax.nn.gelu` goes by erfc, which costs more on CPUs.)"""
    return 0.5 * x * (1.0 + lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


def drop_path(
    branch: Float[Array, "B N D"], rate: Float[Array, ""] | float, uniform: Float[Array, " B"]
) -> Float[Array, "B N D"]:
    """Stochastic depth: branch / (1 - rate) for the samples with uniform >= rate, else 0."""
    keep = jnp.floor((1.0 - rate) + uniform) / (1.0 - rate)
    return branch * keep[:, None, None].astype(branch.dtype)


def residual(x: Float[Array, "B N D"], branch: Float[Array, "B N D"], layer: Layer, place: int) -> Array:
    """x + branch, dropped at random in training; `place` tells the branches of a block apart."""
    if "key" in layer:
        uniform = jax.random.uniform(jax.random.fold_in(layer["key"], place), branch.shape[:1])
        branch = drop_path(branch, layer["rate"], uniform)
    return x + branch


def inverse_temperature(module: nn.Module, design: Design, heads: int, scale_width: int) -> Float[Array, " t"] | float:
    """Inside a module: the learned parameter, or the fixed scale, of attention with this width."""
    scale = scale_width**-0.5
    if not design.learned_temperature:
        return scale
    shape = (heads if design.temperature_per == "head" else 1,)
    return module.param("inverse_temperature", nn.initializers.constant(scale), shape)


def split_heads(x: Float[Array, "B N I"], heads: int) -> Float[Array, "B h N d"]:
    """[B, N, h d] -> [B, h, N, d]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def merge_heads(x: Float[Array, "B h N d"]) -> Float[Array, "B N I"]:
    """[B, h, N, d] -> [B, N, h d]."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


class SelfAttention(nn.Module):
    """Self-attention with LSA's two switches: fused q, k, v; output projection with bias.

    `scale_width`: width whose root is the first temperature (T2T's token transformers take that of their input).
    """

    heads: int
    head_dim: int
    scheme: str
    design: Design
    width: int
    scale_width: int = 0  # 0: head_dim
    qkv_bias: bool = False
    value_skip: bool = False  # add v to the output (T2T's token transformers)

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], bias: Float[Array, "b h N N"] | None = None
    ) -> tuple[Float[Array, "B N E"], Float[Array, "B h N N"]]:
        dtype = self.design.dtype
        qkv = Linear(3 * self.heads * self.head_dim, self.scheme, self.qkv_bias, dtype, name="qkv")(x)
        q, k, v = (kept(split_heads(part, self.heads)) for part in jnp.split(qkv, 3, axis=-1))
        s = inverse_temperature(self, self.design, self.heads, self.scale_width or self.head_dim)
        out, probabilities = lsa.attend(q, k, v, s, mask_diagonal=self.design.mask_diagonal, bias=bias)
        out = Linear(self.width, self.scheme, dtype=dtype, name="out")(merge_heads(out))
        return out + merge_heads(v) if self.value_skip else out, probabilities


class Block(nn.Module):
    """Pre-norm transformer block of ViT, PiT and T2T; `inner_skip` adds the normalised input to the attention (T2T)."""

    heads: int
    head_dim: int
    hidden: int
    scheme: str
    design: Design
    inner_skip: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], layer: Layer) -> tuple[Float[Array, "B N D"], dict[str, Array]]:
        taps = {"input": x}
        u = LayerNorm(name="norm1")(x)
        out, probabilities = SelfAttention(
            self.heads, self.head_dim, self.scheme, self.design, x.shape[-1], name="attention"
        )(u)
        x = kept(residual(x, out + u if self.inner_skip else out, layer, 0))
        out = Mlp(self.hidden, self.scheme, self.design.dtype, name="mlp")(LayerNorm(name="norm2")(x))
        x = residual(x, out, layer, 1)
        return x, {**taps, "attention": probabilities} if self.design.taps else {}


def per_layer(rates: Float[np.ndarray, " L"], key: Array | None, **arrays: Array) -> dict[str, Any]:
    """What a stack of blocks is scanned over: rates, keys in training, and arrays of the caller's [L, ...]."""
    layers: dict[str, Any] = {"rate": jnp.asarray(rates), **arrays}
    if key is not None and rates.any():
        layers["key"] = jax.random.split(key, len(rates))
    return layers


def stack(block: type[nn.Module], depth: int, scan: bool) -> Any:
    """`block` over `depth` layers with stacked parameters [depth, ...]; its arguments are those of `block`.

    With or without `scan` parameters and numbers are the same: without it the loop is written out when compiled.
    """
    return nn.scan(
        nn.remat(block, prevent_cse=False, policy=jax.checkpoint_policies.save_only_these_names(KEPT)),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=depth,
        in_axes=0,
        unroll=1 if scan else depth,
    )


def unstack_taps(taps: dict[str, Array]) -> list[dict[str, Array]]:
    """Taps of a stack, block by block."""
    depth = len(next(iter(taps.values()))) if taps else 0
    return [{name: leaf[i] for name, leaf in taps.items()} for i in range(depth)]


class PatchEmbedding(nn.Module):
    """Tokens [B, n, D] of an image: linear on patches or, with SPT, on normalised shifted patches.

    `convolution`: initialised as the convolution that the official code has here; `norm`: LayerNorm behind it (Swin).
    """

    width: int
    patch: int
    scheme: str
    design: Design
    convolution: bool = False
    norm: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B n D"]:
        if self.design.spt:
            shift = spt.shift_of(self.patch, self.design.shift_ratio)
            return ShiftedPatches(self.width, self.patch, shift, self.scheme, self.design, name="shifted")(images)
        area = self.patch**2 if self.convolution else 1
        patches = spt.patchify(images, self.patch)
        tokens = Linear(self.width, self.scheme, dtype=self.design.dtype, kernel_area=area, name="projection")(patches)
        return LayerNorm(name="norm")(tokens) if self.norm else tokens


class ShiftedPatches(nn.Module):
    """SPT on an image or a grid of tokens, in either form."""

    width: int
    patch: int
    shift: int
    scheme: str
    design: Design

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B n D"]:
        features = (1 + len(spt.DIRECTIONS[self.design.directions])) * self.patch**2 * images.shape[-1]
        kernel_init, bias_init = linear_init(self.scheme, features, self.width)
        weights = spt.Weights(
            self.param("norm_scale", nn.initializers.ones, (features,)),
            self.param("norm_bias", nn.initializers.zeros, (features,)),
            self.param("kernel", kernel_init, (features, self.width)),
            self.param("bias", bias_init, (self.width,)),
        )
        fits = self.patch == 2 * self.shift and self.design.directions == "diagonal4"
        if self.design.fused and fits:
            return spt.tokenize_fused(images, weights, self.patch)
        return spt.tokenize(images, weights, self.patch, self.shift, self.design.directions)


class ShiftedPool(nn.Module):
    """SPT as pooling: [B, n, C] on a grid -> [B, n / 4, width]."""

    width: int
    scheme: str
    design: Design

    @nn.compact
    def __call__(self, tokens: Float[Array, "B n C"], grid: tuple[int, int]) -> Float[Array, "B m D"]:
        images = tokens.reshape(tokens.shape[0], *grid, tokens.shape[-1])
        return ShiftedPatches(self.width, 2, 1, self.scheme, self.design, name="shifted")(images)


def with_class_token(token: Float[Array, " D"], tokens: Float[Array, "B n D"]) -> Float[Array, "B n+1 D"]:
    """The class token in front of every image's tokens."""
    first = jnp.broadcast_to(token[None, None].astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[-1]))
    return jnp.concatenate([first, tokens], axis=1)
