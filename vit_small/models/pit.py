"""PiT, the pooling-based vision transformer (Heo et al. 2021), in the small size of the SPT and LSA paper."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from vit_small.design import Design
from vit_small.layers import (
    Block,
    LayerNorm,
    Linear,
    PatchEmbedding,
    ShiftedPool,
    normal,
    per_layer,
    stack,
    unstack_taps,
    with_class_token,
)


class ConvPool(nn.Module):
    """Halves the grid and doubles the width: 3x3 convolution with two outputs per input channel, then 1x1."""

    @nn.compact
    def __call__(self, tokens: Float[Array, "B n C"], grid: tuple[int, int]) -> Float[Array, "B m 2*C"]:
        batch, _, channels = tokens.shape
        # Xavier's fans of the official grouped kernel [2C, 1, 3, 3]: 9 and 9 * 2C.
        std = (2 / (9 + 9 * 2 * channels)) ** 0.5
        kernel = self.param("kernel", normal(std), (3, 3, 1, 2 * channels))
        bias = self.param("bias", nn.initializers.zeros, (2 * channels,))
        pooled = lax.conv_general_dilated(
            tokens.reshape(batch, *grid, channels),
            kernel,
            (2, 2),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
        )
        pooled = pooled.reshape(batch, -1, 2 * channels) + bias[None, None]
        return Linear(2 * channels, "xavier", name="pointwise")(pooled)


class PiT(nn.Module):
    """Three stages; the class token goes through the poolings by a linear map of its own."""

    num_classes: int
    patch: int
    width: int = 96
    depths: tuple[int, ...] = (2, 6, 4)
    heads: tuple[int, ...] = (2, 4, 8)
    head_dim: int = 48
    mlp_ratio: int = 2
    design: Design = Design()

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"], key: Array | None = None) -> dict:
        """As `ViT.__call__`; blocks through the stages."""
        design = self.design
        std = 1.0 if design.token_std is None else design.token_std
        patches = PatchEmbedding(self.width, self.patch, "xavier", design, convolution=True, name="embedding")(images)
        x = with_class_token(self.param("class_token", normal(std), (self.width,)), patches)
        x = x + self.param("position", normal(std), x.shape[1:])[None]
        grid = (images.shape[1] // self.patch, images.shape[2] // self.patch)
        starts = np.cumsum((0, *self.depths))
        rates, taps = design.drop_rates(int(starts[-1]), "constant"), []
        for i, depth in enumerate(self.depths):
            if i:
                x = self._pool(x, grid, i)
                grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
            blocks = stack(Block, depth, design.scan)(
                self.heads[i], self.head_dim, self.mlp_ratio * x.shape[-1], "xavier", design, name=f"stage{i}"
            )
            stage_key = None if key is None else jax.random.fold_in(key, i)
            x, stage_taps = blocks(x, per_layer(rates[starts[i] : starts[i + 1]], stage_key))
            taps += unstack_taps(stage_taps)
        features = LayerNorm(name="norm")(x[:, 0])
        logits = Linear(self.num_classes, "xavier", name="head")(features)
        return {"logits": logits, "features": features, "patches": patches, "blocks": taps}

    def _pool(self, x: Float[Array, "B N C"], grid: tuple[int, int], stage: int) -> Float[Array, "B M 2*C"]:
        token, patches = x[:, :1], x[:, 1:]
        width = 2 * x.shape[-1]
        token = Linear(width, "xavier", name=f"class{stage}")(token)
        if self.design.spt and self.design.spt_pool:
            patches = ShiftedPool(width, "xavier", self.design, name=f"pool{stage}")(patches, grid)
        else:
            patches = ConvPool(name=f"pool{stage}")(patches, grid)
        return jnp.concatenate([token, patches], axis=1)
