"""Swin transformer (Liu et al. 2021) in the small size of the SPT and LSA paper."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_small import windows
from vit_small.design import Design
from vit_small.layers import (
    Layer,
    LayerNorm,
    Linear,
    Mlp,
    PatchEmbedding,
    SelfAttention,
    ShiftedPool,
    normal,
    per_layer,
    residual,
    stack,
    unstack_taps,
)

SMALL = 0.02


class SwinBlock(nn.Module):
    """Pre-norm block whose attention stays inside windows of a grid, shifted or not."""

    heads: int
    window: int
    shift: int
    mlp_ratio: int
    grid: tuple[int, int]
    design: Design

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], layer: Layer) -> tuple[Float[Array, "B N D"], dict[str, Array]]:
        taps, dtype = {"input": x}, self.design.dtype
        out, probabilities = self._attend(LayerNorm(name="norm1")(x))
        x = residual(x, out, layer, 0)
        out = Mlp(self.mlp_ratio * x.shape[-1], "torch", dtype, name="mlp")(LayerNorm(name="norm2")(x))
        x = residual(x, out, layer, 1)
        return x, {**taps, "attention": probabilities} if self.design.taps else {}

    def _attend(self, u: Float[Array, "B N D"]) -> tuple[Float[Array, "B N D"], Float[Array, "n h T T"]]:
        batch, _, width = u.shape
        u = u.reshape(batch, *self.grid, width)
        if self.shift:
            u = jnp.roll(u, (-self.shift, -self.shift), (1, 2))
        rolled = windows.partition(u, self.window)
        attention = SelfAttention(
            self.heads, width // self.heads, "torch", self.design, width, qkv_bias=True, name="attention"
        )
        out, probabilities = attention(rolled, self._bias(batch))
        out = windows.merge(out, *self.grid, self.window)
        if self.shift:
            out = jnp.roll(out, (self.shift, self.shift), (1, 2))
        return out.reshape(batch, -1, width), probabilities

    def _bias(self, batch: int) -> Float[Array, "b h T T"]:
        """Relative positions, and the shift's mask for every window of every image."""
        rows = (2 * self.window - 1) ** 2
        table = self.param("relative_bias", normal(SMALL), (rows, self.heads))
        bias = table[windows.relative_position_index(self.window)].transpose(2, 0, 1)[None]
        if self.shift:
            mask = windows.shift_mask(*self.grid, self.window, self.shift)
            bias = jnp.tile(bias + jnp.asarray(mask, bias.dtype)[:, None], (batch, 1, 1, 1))
        return bias


class Pair(nn.Module):
    """A block on the windows as they lie and one on shifted windows; `layer` has a leading axis of 2."""

    heads: int
    window: int
    shift: int
    mlp_ratio: int
    grid: tuple[int, int]
    design: Design

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], layer: Layer) -> tuple[Float[Array, "B N D"], list[dict[str, Array]]]:
        taps = []
        for i, (name, shift) in enumerate((("even", 0), ("odd", self.shift))):
            block = SwinBlock(self.heads, self.window, shift, self.mlp_ratio, self.grid, self.design, name=name)
            x, tap = block(x, {key: leaf[i] for key, leaf in layer.items()})
            taps.append(tap)
        return x, taps


class PatchMerging(nn.Module):
    """Pooling of the plain Swin: 2x2 neighbours, LayerNorm, linear without bias."""

    @nn.compact
    def __call__(self, x: Float[Array, "B n C"], grid: tuple[int, int]) -> Float[Array, "B m 2*C"]:
        batch, _, channels = x.shape
        x = windows.halves(x.reshape(batch, *grid, channels)).reshape(batch, -1, 4 * channels)
        return Linear(2 * channels, "torch", use_bias=False, name="reduction")(LayerNorm(name="norm")(x))


class Swin(nn.Module):
    """Stages of window attention, no class token: the mean of the last tokens is classified.

    Where the grid is not larger than the window, the window is the grid and nothing is shifted.
    """

    num_classes: int
    patch: int
    width: int = 96
    depths: tuple[int, ...] = (2, 6, 4)
    heads: tuple[int, ...] = (3, 6, 12)
    window: int = 4
    mlp_ratio: int = 2
    design: Design = Design()

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"], key: Array | None = None) -> dict:
        """As `ViT.__call__`; blocks through the stages, attention by window [B * windows, h, w*w, w*w]."""
        design = self.design
        std = SMALL if design.token_std is None else design.token_std
        patches = PatchEmbedding(self.width, self.patch, "torch", design, norm=True, name="embedding")(images)
        x = patches + self.param("position", normal(std), patches.shape[1:])[None]
        grid = (images.shape[1] // self.patch, images.shape[2] // self.patch)
        starts = np.cumsum((0, *self.depths))
        rates, taps = design.drop_rates(int(starts[-1]), "linear"), []
        for i in range(len(self.depths)):
            if i:
                x = self._pool(x, grid, i)
                grid = (grid[0] // 2, grid[1] // 2)
            stage_key = None if key is None else jax.random.fold_in(key, i)
            x, stage_taps = self._stage(x, grid, i, rates[starts[i] : starts[i + 1]], stage_key)
            taps += stage_taps
        features = LayerNorm(name="norm")(x).mean(axis=1)
        logits = Linear(self.num_classes, "torch", name="head")(features)
        return {"logits": logits, "features": features, "patches": patches, "blocks": taps}

    def _pool(self, x: Float[Array, "B n C"], grid: tuple[int, int], stage: int) -> Float[Array, "B m 2*C"]:
        if self.design.spt and self.design.spt_pool:
            return ShiftedPool(2 * x.shape[-1], "torch", self.design, name=f"pool{stage}")(x, grid)
        return PatchMerging(name=f"pool{stage}")(x, grid)

    def _stage(self, x, grid: tuple[int, int], stage: int, rates: Float[np.ndarray, " L"], key: Array | None):
        window, depth = min(self.window, *grid), len(rates)
        shift = 0 if min(grid) <= self.window else window // 2
        sizes = (self.heads[stage], window, shift, self.mlp_ratio, grid, self.design)
        layers, taps = per_layer(rates, key), []
        if depth > 1:
            pairs = {name: leaf[: depth // 2 * 2].reshape(depth // 2, 2) for name, leaf in layers.items()}
            x, stacked = stack(Pair, depth // 2, self.design.scan)(*sizes, name=f"stage{stage}")(x, pairs)
            for both in zip(*(unstack_taps(part) for part in stacked), strict=True):
                taps += both
        if depth % 2:
            last = SwinBlock(self.heads[stage], window, 0, *sizes[3:], name=f"stage{stage}_last")
            x, tap = last(x, {name: leaf[-1] for name, leaf in layers.items()})
            taps += [tap] if tap else []
        return x, taps
