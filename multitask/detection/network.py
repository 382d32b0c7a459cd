"""Encoder, neck and head of a detector."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from common.models.resnet import EPSILON
from multitask.detection.centernet import HEAT_BIAS, Maps
from multitask.models import Encoder

NECKS = ("upsample", "transpose")
_HE = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Neck(nn.Module):
    """From the encoder's last map to a finer one: `ups` times twice the side, then residual blocks."""

    ups: int
    channels: int
    kind: str  # "upsample": nearest neighbour and 3x3 convolution; "transpose": transposed 4x4 convolution, stride 2
    blocks: int = 0
    train: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n H W d"]:
        for place in range(self.ups):
            if self.kind == "transpose":
                x = nn.ConvTranspose(self.channels, (4, 4), (2, 2), "SAME", use_bias=False, name=f"up{place}")(x)
            else:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = _conv(self.channels, f"up{place}", bias=False)(x)
            x = jax.nn.relu(self._norm(f"up{place}_bn")(x))
        for place in range(self.blocks):
            width = x.shape[-1]
            y = jax.nn.relu(self._norm(f"block{place}_bn1")(_conv(width, f"block{place}_conv1", bias=False)(x)))
            y = self._norm(f"block{place}_bn2")(_conv(width, f"block{place}_conv2", bias=False)(y))
            x = jax.nn.relu(x + y)
        return x

    def _norm(self, name: str) -> nn.BatchNorm:
        return nn.BatchNorm(use_running_average=not self.train, momentum=0.9, epsilon=EPSILON, name=name)


class CenterNetHead(nn.Module):
    """Three branches 3x3 convolution, ReLU, 1x1 convolution."""

    num_classes: int
    channels: int = 64

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Maps:
        def branch(name: str, outputs: int, bias: float) -> Array:
            y = jax.nn.relu(_conv(self.channels, f"{name}_hidden")(x))
            return nn.Conv(outputs, (1, 1), bias_init=nn.initializers.constant(bias), name=name)(y)

        return Maps(branch("heat", self.num_classes, HEAT_BIAS), branch("size", 2, 0.0), branch("offset", 2, 0.0))


class SsdHead(nn.Module):
    """Offsets and class logits (background first) of the anchors of several maps, each half as large as the last."""

    num_classes: int
    levels: int
    shapes: int  # anchors of a cell
    channels: int = 64

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> tuple[Float[Array, "n A 4"], Float[Array, "n A C"]]:
        offsets, logits = [], []
        for level in range(self.levels):
            if level:
                x = _conv(self.channels, f"down{level}", stride=2)(x)
                x = jax.nn.relu(x)
            y = jax.nn.relu(_conv(self.channels, f"hidden{level}")(x))
            for name, outputs, found in (("offsets", 4, offsets), ("logits", self.num_classes + 1, logits)):
                found.append(_conv(self.shapes * outputs, f"{name}{level}")(y).reshape(len(x), -1, outputs))
        return jnp.concatenate(offsets, axis=1), jnp.concatenate(logits, axis=1)


class Detector(nn.Module):
    """Encoder, neck and head; the head's output."""

    encoder: nn.Module
    neck: nn.Module
    head: nn.Module

    def __call__(self, images: Float[Array, "n H W 3"]) -> Any:
        return self.head(self.neck(self.encoder(images)["layer4"]))


def num_ups(encoder: Encoder, stride: int) -> int | None:
    """How often the neck doubles the encoder's last map to get to `stride`; None where no number does."""
    ratio = encoder.strides[-1] / stride
    ups = round(math.log2(ratio)) if ratio >= 1 else -1
    return ups if ups >= 0 and 2**ups == ratio else None


def level_sizes(side: int, levels: int) -> Sequence[int]:
    """Cells a side of the maps of an SSD head whose first map has `side`."""
    sizes = [side]
    while len(sizes) < levels:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


def _conv(features: int, name: str, stride: int = 1, bias: bool = True) -> nn.Conv:
    pad = ((1, 1), (1, 1))
    return nn.Conv(features, (3, 3), (stride, stride), pad, use_bias=bias, kernel_init=_HE, name=name)
