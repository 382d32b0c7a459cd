"""T2T-ViT (Yuan et al. 2021) as the small-data-set code has it: soft splits, token transformers, backbone."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_small import spt
from vit_small.design import Design
from vit_small.layers import (
    Block,
    LayerNorm,
    Linear,
    Mlp,
    SelfAttention,
    normal,
    per_layer,
    stack,
    unstack_taps,
    with_class_token,
)

SMALL = 0.02


def unfold(images: Float[Array, "B H W C"]) -> Float[Array, "B h w C*9"]:
    """Soft split: overlapping 3x3 windows, stride 2, zero padding 1; feature = channel * 9 + row * 3 + column."""
    batch, height, width, channels = images.shape
    rows, columns = (height + 1) // 2, (width + 1) // 2
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = [padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for i in range(3) for j in range(3)]
    return jnp.stack(windows, axis=-1).reshape(batch, rows, columns, channels * 9)


def sinusoid(positions: int, width: int) -> Float[np.ndarray, "N D"]:
    """Fixed positions: angle = position / 10000^(2 floor(j/2) / width), sine at even j, cosine at odd j."""
    feature = np.arange(width)
    angle = np.arange(positions)[:, None] / 10000.0 ** (2 * (feature[None] // 2) / width)
    return np.where(feature[None] % 2 == 0, np.sin(angle), np.cos(angle))


class TokenTransformer(nn.Module):
    """One head at width `width`: a = attention(LN x) with v added, y = a + MLP(LN a). No skip from x."""

    width: int
    design: Design
    input_scale: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N E"]:
        attention = SelfAttention(
            1,
            self.width,
            "small",
            self.design,
            self.width,
            scale_width=x.shape[-1] if self.input_scale else self.width,
            value_skip=True,
            name="attention",
        )
        a, _ = attention(LayerNorm(name="norm1")(x))
        return a + Mlp(self.width, "small", self.design.dtype, name="mlp")(LayerNorm(name="norm2")(a))


class T2T(nn.Module):
    """`soft_splits` - 1 token transformers; fixed positions; the class token is read behind the last LayerNorm.

    `input_scale`: scale of the token transformers by the width of their input, and `inner_skip`: the backbone's
    attention adds its normalised input; both as in the official small-data-set code, not as in T2T-ViT.
    SPT here only puts the image's shifted views into the channels. The official module also owns a LayerNorm that it
    never uses (18 times the token width in numbers); it is not made here.
    """

    num_classes: int
    soft_splits: int = 2
    token_width: int = 64
    width: int = 256
    depth: int = 12
    heads: int = 4
    hidden: int = 512
    input_scale: bool = True
    inner_skip: bool = True
    design: Design = Design()

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"], key: Array | None = None) -> dict:
        """As `ViT.__call__`; taps of the backbone only."""
        design = self.design
        std = SMALL if design.token_std is None else design.token_std
        if design.spt:
            images = spt.shifted_views(images, 1, design.directions)
        grid = unfold(images)
        for i in range(1, self.soft_splits):
            tokens = grid.reshape(grid.shape[0], -1, grid.shape[-1])
            tokens = TokenTransformer(self.token_width, design, self.input_scale, name=f"tokens{i}")(tokens)
            grid = unfold(tokens.reshape(*grid.shape[:3], -1))
        tokens = grid.reshape(grid.shape[0], -1, grid.shape[-1])
        patches = Linear(self.width, "small", dtype=design.dtype, name="projection")(tokens)
        x = with_class_token(self.param("class_token", normal(std), (self.width,)), patches)
        x = x + jnp.asarray(sinusoid(x.shape[1], self.width), x.dtype)[None]
        blocks = stack(Block, self.depth, design.scan)(
            self.heads,
            self.width // self.heads,
            self.hidden,
            "small",
            design,
            inner_skip=self.inner_skip,
            name="blocks",
        )
        x, taps = blocks(x, per_layer(design.drop_rates(self.depth, "linear"), key))
        features = LayerNorm(name="norm")(x[:, 0])
        logits = Linear(self.num_classes, "small", name="head")(features)
        return {"logits": logits, "features": features, "patches": patches, "blocks": unstack_taps(taps)}
