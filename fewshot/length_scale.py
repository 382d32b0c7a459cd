"""The length scale σ of label propagation: a given number, one learned number, or one per image by a small network.

The network is that of TPN (Liu et al., ICLR 2019): two blocks of convolution, batch norm, ReLU and pooling on the
features' map, then two linear layers. Nothing keeps its σ positive, since only z/σ enters.
"""

import math
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fewshot.convolution import patches
from fewshot.label_propagation import Propagation
from fewshot.models import batch_norm, max_pool

SIGMAS = ("fixed", "scalar", "per_image")
_CHANNELS = 64


class LengthScale(nn.Module):
    """σ of each image from the maps that the head sees; all images are one batch for batch norm."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, " n"]:
        for i, channels in enumerate((_CHANNELS, 1)):
            kernel = self.param(f"kernel{i}", nn.initializers.xavier_uniform(), (3, 3, x.shape[-1], channels))
            scale = self.param(f"scale{i}", nn.initializers.ones, (channels,))
            shift = self.param(f"shift{i}", nn.initializers.zeros, (channels,))
            x = jax.nn.relu(batch_norm(patches(x, kernel), scale, shift)[0])
            x = max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))  # nothing is below 0 here, so 0 pads as -inf
        x = x.reshape(x.shape[0], -1)
        hidden = self.param("hidden", nn.initializers.xavier_uniform(), (x.shape[1], 8))
        hidden_bias = self.param("hidden_bias", nn.initializers.zeros, (8,))
        output = self.param("output", nn.initializers.xavier_uniform(), (8, 1))
        # Ours: σ starts near 1. From a bias of 0 an image whose hidden units are all off would be divided by 0.
        output_bias = self.param("output_bias", nn.initializers.ones, (1,))
        return (jax.nn.relu(x @ hidden + hidden_bias[None]) @ output + output_bias[None])[:, 0]


def init_sigma(spec: Propagation, key: Array, num_features: int, channels: int) -> dict[str, Any]:
    """What is learned of σ, for feature maps of `channels` channels: nothing, log σ, or the network's parameters."""
    if spec.sigma == "fixed":
        return {}
    if spec.sigma == "scalar":
        return {"log_sigma": jnp.full((), math.log(spec.initial_sigma))}
    return dict(LengthScale().init(key, _maps(jnp.zeros((1, num_features)), channels))["params"])


def length_scale(
    spec: Propagation, params: dict[str, Any], features: Float[Array, "n d"]
) -> Float[Array, ""] | Float[Array, " n"]:
    """σ of the images with these features; `params` as `init_sigma` made them."""
    if spec.sigma == "fixed":
        return jnp.asarray(spec.initial_sigma, features.dtype)
    if spec.sigma == "scalar":
        return jnp.exp(params["log_sigma"])
    maps = _maps(features, params["kernel0"].shape[2])
    return cast(Array, LengthScale().apply({"params": params}, maps))


def _maps(features: Float[Array, "n d"], channels: int) -> Float[Array, "n side side channels"]:
    side = math.isqrt(features.shape[1] // channels)
    return features.reshape(features.shape[0], side, side, channels)
