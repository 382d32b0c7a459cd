"""CaiT (Touvron et al. 2021) as the small-data-set code has it: talking heads, layer scale, late class token."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_small import lsa
from vit_small.design import Design
from vit_small.layers import (
    Layer,
    LayerNorm,
    Linear,
    Mlp,
    PatchEmbedding,
    inverse_temperature,
    merge_heads,
    normal,
    per_layer,
    residual,
    split_heads,
    stack,
    unstack_taps,
)


def first_layer_scale(layer: int) -> float:
    """First layer scale of a stack's layer, counted from 0: 0.1, from the 19th 1e-5, from the 25th 1e-6."""
    return 0.1 if layer < 18 else 1e-5 if layer < 24 else 1e-6


def layer_scale_init(key: Array, shape: tuple[int, int, int], dtype=jnp.float32) -> Float[Array, "L 2 D"]:
    """Initialiser for both branches of all layers of a stack."""
    del key
    scales = jnp.asarray([first_layer_scale(layer) for layer in range(shape[0])], dtype)
    return jnp.broadcast_to(scales[:, None, None], shape)


class TalkingHeads(nn.Module):
    """Attention of `x` to `context`; q, k, v without bias; `strict` masks behind the mixing (see `lsa`)."""

    heads: int
    head_dim: int
    design: Design
    mask_diagonal: bool
    strict: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], context: Float[Array, "B M D"]
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B h N M"]]:
        inner, dtype = self.heads * self.head_dim, self.design.dtype
        q = Linear(inner, "xavier", use_bias=False, dtype=dtype, name="q")(x)
        k, v = jnp.split(Linear(2 * inner, "xavier", use_bias=False, dtype=dtype, name="kv")(context), 2, axis=-1)
        out, probabilities = lsa.attend_with_talking_heads(
            split_heads(q, self.heads),
            split_heads(k, self.heads),
            split_heads(v, self.heads),
            inverse_temperature(self, self.design, self.heads, self.head_dim),
            self.param("mix_before", normal(1.0), (self.heads, self.heads)),
            self.param("mix_after", normal(1.0), (self.heads, self.heads)),
            mask_diagonal=self.mask_diagonal,
            strict=self.strict,
        )
        return Linear(x.shape[-1], "xavier", dtype=dtype, name="out")(merge_heads(out)), probabilities


class ScaledBlock(nn.Module):
    """Pre-norm block with layer scale; `classes`: `x` is the class token and looks at the patches in `layer`."""

    heads: int
    head_dim: int
    hidden: int
    design: Design
    strict: bool = False
    classes: bool = False

    @nn.compact
    def __call__(
        self, carry: tuple[Array, Array | None], layer: Layer
    ) -> tuple[tuple[Array, Array | None], dict[str, Array]]:
        x, patches = carry
        taps, scale = {"input": x}, layer["scale"]
        u = LayerNorm(name="norm1")(x)
        mask = self.design.mask_diagonal and not self.classes
        attention = TalkingHeads(self.heads, self.head_dim, self.design, mask, self.strict, name="attention")
        out, probabilities = attention(u, u if patches is None else patches)
        x = residual(x, scale[0][None, None] * out, layer, 0)
        out = Mlp(self.hidden, "xavier", self.design.dtype, name="mlp")(LayerNorm(name="norm2")(x))
        x = residual(x, scale[1][None, None] * out, layer, 1)
        return (x, patches), {**taps, "attention": probabilities} if self.design.taps else {}


class CaiT(nn.Module):
    """Patch layers without class token, then class layers in which it looks at the finished patches.

    Differs from the CaiT paper, as the official small-data-set code does: in the class layers keys and values come from
    the patches only, which are not normalised.
    """

    num_classes: int
    patch: int
    width: int = 192
    depth: int = 24
    class_depth: int = 2
    heads: int = 4
    head_dim: int = 64
    hidden: int = 384
    strict_mask: bool = False
    design: Design = Design()

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"], key: Array | None = None) -> dict:
        """As `ViT.__call__`; taps of the patch layers, then of the class layers."""
        design = self.design
        std = 1.0 if design.token_std is None else design.token_std
        keys = (None, None) if key is None else jax.random.split(key)
        patches = PatchEmbedding(self.width, self.patch, "xavier", design, name="embedding")(images)
        x = patches + self.param("position", normal(std), patches.shape[1:])[None]
        (x, _), taps = self._stack("patch_blocks", self.depth, False, (x, None), keys[0])
        token = self.param("class_token", normal(std), (self.width,))
        token = jnp.broadcast_to(token[None, None], (x.shape[0], 1, self.width)).astype(x.dtype)
        (token, _), class_taps = self._stack("class_blocks", self.class_depth, True, (token, x), keys[1])
        features = LayerNorm(name="norm")(token[:, 0])
        logits = Linear(self.num_classes, "xavier", name="head")(features)
        blocks = unstack_taps(taps) + unstack_taps(class_taps)
        return {"logits": logits, "features": features, "patches": patches, "blocks": blocks}

    def _stack(self, name: str, depth: int, classes: bool, carry, key: Array | None):
        design = self.design
        scale = self.param(f"{name}_scale", layer_scale_init, (depth, 2, self.width))
        rates: Float[np.ndarray, " L"] = design.drop_rates(depth, "constant")
        blocks = stack(ScaledBlock, depth, design.scan)(
            self.heads, self.head_dim, self.hidden, design, self.strict_mask, classes, name=name
        )
        return blocks(carry, per_layer(rates, key, scale=scale))
