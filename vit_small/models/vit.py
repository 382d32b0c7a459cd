"""ViT (Dosovitskiy et al. 2021) in the small size of the SPT and LSA paper."""

import flax.linen as nn
from jaxtyping import Array, Float

from vit_small.design import Design
from vit_small.layers import (
    Block,
    LayerNorm,
    Linear,
    PatchEmbedding,
    normal,
    per_layer,
    stack,
    unstack_taps,
    with_class_token,
)


class ViT(nn.Module):
    """Learned class token (first) and positions; LayerNorm and a linear head on the class token."""

    num_classes: int
    patch: int
    width: int = 192
    depth: int = 9
    heads: int = 12
    head_dim: int = 16
    hidden: int = 384
    design: Design = Design()

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"], key: Array | None = None) -> dict:
        """Logits [B, classes], the head's input, and with `taps` what the analysis needs; `key`: in training."""
        design = self.design
        std = 1.0 if design.token_std is None else design.token_std
        patches = PatchEmbedding(self.width, self.patch, "xavier", design, name="embedding")(images)
        x = with_class_token(self.param("class_token", normal(std), (self.width,)), patches)
        x = x + self.param("position", normal(std), x.shape[1:])[None]
        blocks = stack(Block, self.depth, design.scan)(
            self.heads, self.head_dim, self.hidden, "xavier", design, name="blocks"
        )
        x, taps = blocks(x, per_layer(design.drop_rates(self.depth, "constant"), key))
        features = LayerNorm(name="norm")(x[:, 0])
        logits = Linear(self.num_classes, "xavier", name="head")(features)
        return {"logits": logits, "features": features, "patches": patches, "blocks": unstack_taps(taps)}
