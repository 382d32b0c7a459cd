"""EfficientNet-B5 and EfficientNet-Lite0 as ported from TensorFlow, with timm's names.

The module `blocks_3_0/conv_dw` holds what a timm checkpoint calls `blocks.3.0.conv_dw`; `timm_names` renames the
tensors of the other common port. Images are [n, h, w, 3]. Source: Tan and Le 2019, and specs of the official TPU code.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

EPSILON = 1e-3
PADDINGS = ("nominal", "same")


class Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int  # of its first block
    expansion: int
    channels: int


B5 = (
    *(Stage(3, 3, 1, 1, 24), Stage(5, 3, 2, 6, 40), Stage(5, 5, 2, 6, 64), Stage(7, 3, 2, 6, 128)),
    *(Stage(7, 5, 1, 6, 176), Stage(9, 5, 2, 6, 304), Stage(3, 3, 1, 6, 512)),
)
LITE0 = (
    *(Stage(1, 3, 1, 1, 16), Stage(2, 3, 2, 6, 24), Stage(2, 5, 2, 6, 40), Stage(3, 3, 2, 6, 80)),
    *(Stage(3, 5, 1, 6, 112), Stage(4, 5, 2, 6, 192), Stage(1, 3, 1, 6, 320)),
)


class EfficientNet(nn.Module):
    """Inverted residual blocks, computed and built only as far as the deepest tap.

    Taps: "stem", "block0", "block1", ... (raw block outputs, counted through all stages), "head", "pooled" [n, d],
    "logits" [n, num_classes].

    TensorFlow pads strided layers by amounts that depend on the image's size. `padding="nominal"` takes the amounts
    for `nominal_size` at every size, as the port that CFA uses does; "same" those for the size at hand.
    """

    taps: Sequence[str]
    stages: Sequence[Stage] = LITE0
    stem: int = 32
    head: int = 1280
    squeeze: bool = False  # B5: squeeze-and-excitation and swish; Lite0: neither, and ReLU6
    nominal_size: int = 224
    padding: str = "nominal"
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"]) -> dict[str, Float[Array, "..."]]:
        act = jax.nn.silu if self.squeeze else jax.nn.relu6
        nominal = self.nominal_size
        pad = self._pads(3, 2, nominal, x)
        x = act(_norm("bn1")(nn.Conv(self.stem, (3, 3), (2, 2), pad, use_bias=False, name="conv_stem")(x)))
        nominal, found = -(-nominal // 2), {"stem": x}
        for i, stage in enumerate(self.stages):
            for j in range(stage.repeats):
                if set(self.taps) <= set(found):
                    break
                stride = stage.stride if j == 0 else 1
                pad = self._pads(stage.kernel, stride, nominal, x)
                block = _Block(stage, stride, pad, self.squeeze, add_input=j > 0, name=f"blocks_{i}_{j}")
                x = found[f"block{len(found) - 1}"] = block(x)
                nominal = -(-nominal // stride)
        if not set(self.taps) <= set(found):
            x = nn.Conv(self.head, (1, 1), use_bias=False, name="conv_head")(x)
            found["head"] = act(_norm("bn2")(x))
            found["pooled"] = jnp.mean(found["head"], axis=(1, 2))
            if "logits" in self.taps:
                found["logits"] = nn.Dense(self.num_classes, name="classifier")(found["pooled"])
        return {name: found[name] for name in self.taps}

    def _pads(self, kernel: int, stride: int, nominal: int, x: Array) -> tuple[tuple[int, int], ...]:
        sizes = (nominal, nominal) if self.padding == "nominal" else x.shape[1:3]
        totals = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in sizes]
        return tuple((total // 2, total - total // 2) for total in totals)


class _Block(nn.Module):
    """[1x1 expansion,] depthwise convolution, [squeeze-and-excitation,] 1x1 projection without activation."""

    stage: Stage
    stride: int
    pad: Sequence[tuple[int, int]]
    squeeze: bool
    add_input: bool

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 d"]:
        act = jax.nn.silu if self.squeeze else jax.nn.relu6
        expands, y, channels = self.stage.expansion > 1, x, x.shape[-1] * self.stage.expansion
        if expands:
            y = act(_norm("bn1")(nn.Conv(channels, (1, 1), use_bias=False, name="conv_pw")(y)))
        y = Depthwise(self.stage.kernel, self.stride, self.pad, name="conv_dw")(y)
        y = act(_norm("bn2" if expands else "bn1")(y))
        if self.squeeze:
            y = _SqueezeExcite(max(1, x.shape[-1] // 4), name="se")(y)
        y = nn.Conv(self.stage.channels, (1, 1), use_bias=False, name="conv_pwl" if expands else "conv_pw")(y)
        y = _norm("bn3" if expands else "bn2")(y)
        return x + y if self.add_input else y


class Depthwise(nn.Module):
    """One kernel for each channel.

    On CPU as a sum of shifted images, because XLA's grouped convolution is 20 to 100 times slower there: measured on
    2 cores, the taps of Lite0 at 128 pixels take 1.9 ms an image instead of 44. The numbers are the same.
    """

    size: int
    stride: int
    pad: Sequence[tuple[int, int]]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = self.param("kernel", init, (self.size, self.size, 1, channels))
        if jax.default_backend() == "cpu":
            return depthwise_shifted(x, kernel, self.stride, self.pad)
        strides, axes = (self.stride, self.stride), ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, strides, self.pad, feature_group_count=channels, dimension_numbers=axes
        )


def depthwise_shifted(
    x: Float[Array, "n h w c"], kernel: Float[Array, "k k 1 c"], stride: int, pad: Sequence[tuple[int, int]]
) -> Float[Array, "n h2 w2 c"]:
    """Depthwise convolution as k*k multiplied and added slices of the padded image."""
    size = kernel.shape[0]
    x = jnp.pad(x, ((0, 0), *pad, (0, 0)))
    high, wide = ((x.shape[axis] - size) // stride * stride + 1 for axis in (1, 2))
    slices = [
        x[:, i : i + high : stride, j : j + wide : stride] * kernel[i, j][None, None]
        for i in range(size)
        for j in range(size)
    ]
    return sum(slices[1:], start=slices[0])


class _SqueezeExcite(nn.Module):
    """Scale channels by a gate computed from their means; `inside` channels between the two 1x1 convolutions."""

    inside: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        gate = jnp.mean(x, axis=(1, 2), keepdims=True)
        gate = jax.nn.silu(nn.Conv(self.inside, (1, 1), name="conv_reduce")(gate))
        return x * jax.nn.sigmoid(nn.Conv(x.shape[-1], (1, 1), name="conv_expand")(gate))


def _norm(name: str) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=True, epsilon=EPSILON, name=name)


def timm_names(weights: Mapping[str, np.ndarray], stages: Sequence[Stage]) -> dict[str, np.ndarray]:
    """Weights under timm's names, given them or the names `_conv_stem`, `_blocks.7._bn0`, ... of the other port."""
    if "_conv_stem.weight" not in weights:
        return dict(weights)
    names = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    places = [(i, j, stage) for i, stage in enumerate(stages) for j in range(stage.repeats)]
    for flat, (i, j, stage) in enumerate(places):
        expands = stage.expansion > 1
        inner = {
            "_expand_conv": "conv_pw",
            "_bn0": "bn1",
            "_depthwise_conv": "conv_dw",
            "_bn1": "bn2" if expands else "bn1",
            "_se_reduce": "se.conv_reduce",
            "_se_expand": "se.conv_expand",
            "_project_conv": "conv_pwl" if expands else "conv_pw",
            "_bn2": "bn3" if expands else "bn2",
        }
        names |= {f"_blocks.{flat}.{old}": f"blocks.{i}.{j}.{new}" for old, new in inner.items()}
    renamed = {}
    for name, array in weights.items():
        layer, _, leaf = name.rpartition(".")
        renamed[f"{names.get(layer, layer)}.{leaf}" if layer else name] = array
    return renamed
