"""The ResNet of the toolbox: wider than usual, "ResNet8" (one block a stage) and "ResNet32" (five)."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from distill.models.layers import Taps, conv, dense, global_average, norm, output


class ResNet(nn.Module):
    """Sensing points "stage1", "stage2", ...: the ends of the stages."""

    num_classes: int
    blocks: int = 1  # of each stage
    stem: int = 32
    widths: tuple[int, ...] = (64, 128, 256)
    strides: tuple[int, ...] = (1, 2, 2)

    @nn.compact
    def __call__(self, x: Float[Array, "B H W c"], train: bool = False) -> dict[str, Any]:
        x = nn.relu(norm(train, "bn0")(conv(self.stem, name="conv0")(x)))
        taps: Taps = {}
        for stage, (width, stride) in enumerate(zip(self.widths, self.strides, strict=True)):
            raw = x
            for block in range(self.blocks):
                raw = _Block(width, stride if block == 0 else 1, name=f"stage{stage}_block{block}")(x, train)
                x = nn.relu(raw)
            taps[f"stage{stage + 1}"] = (x, raw)
        features = global_average(x)
        return output(dense(self.num_classes, "full")(features), features, taps)


class _Block(nn.Module):
    """Two convolutions and the shortcut, without the last ReLU."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W c"], train: bool) -> Float[Array, "B h w d"]:
        y = nn.relu(norm(train, "bn0")(conv(self.width, 3, self.stride, name="conv0")(x)))
        y = norm(train, "bn1")(conv(self.width, name="conv1")(y))
        if self.stride > 1 or x.shape[-1] != self.width:
            x = norm(train, "bn2")(conv(self.width, 1, self.stride, name="conv2")(x))
        return x + y
