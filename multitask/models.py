"""The shared encoder and what stands on it during pre-training: decoder, linear heads, projections.

    encoder = make_encoder("conv4", "small", 32)
    features = encoder.module().apply(variables, images)     {"layer1" ... "layer4": maps, "pooled": [n, channels]}

`variables` is {"params", "batch_stats"}. Images are normalised, [n, H, W, 3]; any size that the strides divide.
"""

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from common.models.resnet import EPSILON, STEMS, ResNet

LAYERS = ("layer1", "layer2", "layer3", "layer4")
_RESNETS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
}
NAMES = ("conv4", *_RESNETS)
_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A network and the maps that it gives.

    Attributes:
      name: one of NAMES.
      channels: of "layer1" ... "layer4"; the last is the width of "pooled".
      strides: input pixels per position of these maps, along a side.
      module: train -> the network; train=True uses batch statistics and needs `mutable=["batch_stats"]`.
    """

    name: str
    channels: tuple[int, int, int, int]
    strides: tuple[int, int, int, int]
    module: Callable[..., nn.Module]


class Conv4(nn.Module):
    """Four times 3x3 convolution, BatchNorm, ReLU, with the strides 2, 2, 1, 1."""

    width: int = 32
    train: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"]) -> dict[str, Float[Array, "..."]]:
        found = {}
        for name, stride in zip(LAYERS, (2, 2, 1, 1), strict=True):
            x = jax.nn.relu(_conv_norm(x, self.width, stride, self.train, name))
            found[name] = x
        return found | {"pooled": jnp.mean(x, axis=(1, 2))}


def make_encoder(name: str, stem: str, width: int) -> Encoder:
    """The encoder of a config.

    Args:
      name: one of NAMES.
      stem: of a ResNet: "small" (3x3, for up to 48 pixels), "medium" (3x3, stride 2, for 64 to 112), "imagenet".
      width: channels of conv4.
    """
    if name == "conv4":
        return Encoder(name, (width, width, width, width), (2, 4, 4, 4), lambda train=False: Conv4(width, train))
    blocks, bottleneck = _RESNETS[name]
    times, first = 4 if bottleneck else 1, STEMS[stem]

    def module(train: bool = False) -> nn.Module:
        return ResNet((*LAYERS, "pooled"), blocks, bottleneck, tap_activation="relu", train=train, stem=stem)

    return Encoder(
        name,
        (64 * times, 128 * times, 256 * times, 512 * times),
        (first, 2 * first, 4 * first, 8 * first),
        module,
    )


def _conv_norm(x: Array, width: int, stride: int, train: bool, name: str) -> Array:
    """Called inside a module's `__call__`, whose submodules these become."""
    x = nn.Conv(width, (3, 3), stride, ((1, 1), (1, 1)), use_bias=False, kernel_init=_INIT, name=f"{name}_conv")(x)
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=EPSILON, name=f"{name}_bn")(x)


class Decoder(nn.Module):
    """From the last map back to pixels: nearest-neighbour doubling, 3x3 convolution, BatchNorm, ReLU; a last 3x3.

    Attributes:
      channels: of each doubling, so their number is log2 of the map's stride.
      outputs: channels of the images, which come out normalised.
    """

    channels: Sequence[int]
    outputs: int = 3
    train: bool = False

    @nn.compact
    def __call__(self, features: dict[str, Array]) -> Float[Array, "n H W outputs"]:
        x = features["layer4"]
        for place, width in enumerate(self.channels):
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            x = jax.nn.relu(_conv_norm(x, width, 1, self.train, f"up{place}"))
        return nn.Conv(self.outputs, (3, 3), padding=((1, 1), (1, 1)), kernel_init=_INIT, name="out")(x)


class Projection(nn.Module):
    """From pooled features to the space in which tasks are compared; not normalised."""

    dim: int
    hidden: bool = True  # a hidden layer as wide as the features; else one linear map without bias

    @nn.compact
    def __call__(self, pooled: Float[Array, "n c"]) -> Float[Array, "n dim"]:
        if not self.hidden:
            return nn.Dense(self.dim, use_bias=False)(pooled)
        return nn.Dense(self.dim)(jax.nn.relu(nn.Dense(pooled.shape[-1])(pooled)))
