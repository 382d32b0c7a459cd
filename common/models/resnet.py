"""ResNet and Wide ResNet in torchvision's form, with its names, so that published weights fit without a table.

The module `layer2_0/conv1` holds what a checkpoint calls `layer2.0.conv1`. Images are [n, h, w, 3]. Source: He et al.
2016, Zagoruyko and Komodakis 2016; strides, paddings and epsilon as in torchvision.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-5
TAP_ACTIVATIONS = ("leaky_relu", "relu")
STEMS = {"imagenet": 4, "medium": 2, "small": 1}  # name -> stride: 7x7 convolution and maximum, or one 3x3 convolution
_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut; takes activations, returns the sum *before* its activation."""

    filters: int
    stride: int = 1
    train: bool = False  # batch statistics and mutable running averages instead of the stored ones

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 d"]:
        y = _conv(self.filters, 3, self.stride, "conv1")(x)
        y = jax.nn.relu(_norm(self.train, "bn1")(y))
        y = _norm(self.train, "bn2")(_conv(self.filters, 3, 1, "conv2")(y))
        return y + _shortcut(x, self.filters, self.stride, self.train)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which has the stride) and 1x1 convolution to 4 times the filters; see `BasicBlock`."""

    filters: int
    stride: int = 1
    train: bool = False
    width: int = 1  # times as many channels inside; 2 in wide_resnet50_2

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 d"]:
        inside, outside = self.filters * self.width, self.filters * 4
        y = jax.nn.relu(_norm(self.train, "bn1")(_conv(inside, 1, 1, "conv1")(x)))
        y = jax.nn.relu(_norm(self.train, "bn2")(_conv(inside, 3, self.stride, "conv2")(y)))
        y = _norm(self.train, "bn3")(_conv(outside, 1, 1, "conv3")(y))
        return y + _shortcut(x, outside, self.stride, self.train)


class ResNet(nn.Module):
    """ResNet for 224-pixel images (or, with another stem, smaller ones), built only as far as the deepest tap.

    Taps: "layer1" ... "layer4" (strides 1, 2, 4, 8 times the stem's), "pooled" [n, d], "logits" [n, num_classes].

    The taps of layers are LeakyReLU (slope 0.01) of each layer's last sum, as the official CFA code has it, while the
    network itself goes on with ReLU; `tap_activation="relu"` gives the usual features.
    """

    taps: Sequence[str]
    blocks: Sequence[int] = (2, 2, 2, 2)
    bottleneck: bool = False
    width: int = 1
    num_classes: int = 1000
    tap_activation: str = "leaky_relu"
    train: bool = False
    stem: str = "imagenet"  # one of STEMS

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"]) -> dict[str, Float[Array, "..."]]:
        tap = jax.nn.leaky_relu if self.tap_activation == "leaky_relu" else jax.nn.relu
        size, stride = (7, 2) if self.stem == "imagenet" else (3, STEMS[self.stem])
        x = jax.nn.relu(_norm(self.train, "bn1")(_conv(64, size, stride, "conv1")(x)))
        if self.stem == "imagenet":
            # Flax pads a maximum with -inf; its annotation knows only text.
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        found = {}
        for layer, count in enumerate(self.blocks, 1):
            total = x
            for j in range(count):
                total = self._block(layer, j)(x)
                x = jax.nn.relu(total)
            found[f"layer{layer}"] = tap(total)
            if set(self.taps) <= set(found):
                break
        else:
            found["pooled"] = jnp.mean(x, axis=(1, 2))
            if "logits" in self.taps:
                found["logits"] = nn.Dense(self.num_classes, name="fc")(found["pooled"])
        return {name: found[name] for name in self.taps}

    def _block(self, layer: int, j: int) -> nn.Module:
        filters, stride, name = 32 * 2**layer, 2 if layer > 1 and j == 0 else 1, f"layer{layer}_{j}"
        if self.bottleneck:
            return Bottleneck(filters, stride, self.train, self.width, name=name)
        return BasicBlock(filters, stride, self.train, name=name)


def _conv(filters: int, size: int, stride: int, name: str) -> nn.Conv:
    pad = ((size // 2, size // 2),) * 2
    return nn.Conv(filters, (size, size), (stride, stride), pad, use_bias=False, kernel_init=_INIT, name=name)


def _norm(train: bool, name: str) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=EPSILON, name=name)


def _shortcut(x: Array, filters: int, stride: int, train: bool) -> Array:
    """Called inside a block's `__call__`, whose submodules these become."""
    if stride == 1 and x.shape[-1] == filters:
        return x
    return _norm(train, "downsample_1")(_conv(filters, 1, stride, "downsample_0")(x))
