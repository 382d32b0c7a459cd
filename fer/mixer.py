"""MLP-Mixer (Tolstikhin et al. 2021) with the latent output of the official ELIM code, whose names it has."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from fer.layers import linear


class MlpBlock(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "B n d"]) -> Float[Array, "B n d"]:
        y = nn.gelu(linear(self.hidden, x.shape[-1], "fc0")(x), approximate=False)
        return linear(x.shape[-1], self.hidden, "fc1")(y)


class MixerLayer(nn.Module):
    token_hidden: int
    channel_hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "B n d"]) -> Float[Array, "B n d"]:
        y = nn.LayerNorm(epsilon=1e-6, name="pre_norm")(x).swapaxes(1, 2)
        x = x + MlpBlock(self.token_hidden, name="token_mlp_block")(y).swapaxes(1, 2)
        y = nn.LayerNorm(epsilon=1e-6, name="post_norm")(x)
        return x + MlpBlock(self.channel_hidden, name="channel_mlp_block")(y)


class Mixer(nn.Module):
    """Signed latents [B, latent] of images [B, H, W, C], without batch norm or ReLU behind them.

    B/16 by default. `head_outputs` adds the head that the official network has and does not use.
    """

    latent: int
    width: int = 768
    depth: int = 12
    token_hidden: int = 384
    channel_hidden: int = 3072
    patch: int = 16
    latent_bias: bool = False  # the first release had one
    head_outputs: int = 0

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W C"], train: bool = False
    ) -> Float[Array, "B l"] | tuple[Float[Array, "B l"], Float[Array, "B k"]]:
        del train  # nothing here behaves otherwise
        size = (self.patch, self.patch)
        x = nn.Conv(self.width, size, size, "VALID", name="stem")(images)
        x = x.reshape(x.shape[0], -1, self.width)
        for i in range(self.depth):
            x = MixerLayer(self.token_hidden, self.channel_hidden, name=f"layer_{i}")(x)
        x = jnp.mean(nn.LayerNorm(epsilon=1e-6, name="pre_head_ln")(x), axis=1)
        latent = linear(self.latent, self.width, "btl_head", self.latent_bias)(x)
        return (latent, linear(self.head_outputs, self.width, "head")(x)) if self.head_outputs else latent
