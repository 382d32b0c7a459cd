"""The MobileNets of KD-SVD and MHGD: depthwise-separable convolutions."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from common.models.efficientnet import Depthwise
from distill.models.layers import Taps, conv, dense, global_average, norm, output

EPSILON = 1e-3


class MobileNet(nn.Module):
    """Sensing points "stage1", "stage2", ...: the ends of the stages."""

    num_classes: int
    stem: int = 32
    widths: tuple[int, ...] = (64, 128, 256, 512)  # every stage but the first begins with stride 2
    repeats: tuple[int, ...] = (1, 1, 1, 1)  # blocks of each stage

    @nn.compact
    def __call__(self, x: Float[Array, "B H W c"], train: bool = False) -> dict[str, Any]:
        x = nn.relu(norm(train, "bn0", EPSILON)(conv(self.stem, name="conv0", mode="fan_in")(x)))
        taps: Taps = {}
        for stage, (width, repeats) in enumerate(zip(self.widths, self.repeats, strict=True)):
            raw = x
            for block in range(repeats):
                stride = 2 if stage and not block else 1
                raw = _Separable(width, stride, name=f"stage{stage}_block{block}")(x, train)
                x = nn.relu(raw)
            taps[f"stage{stage + 1}"] = (x, raw)
        features = global_average(x)
        return output(dense(self.num_classes, "full")(features), features, taps)


class _Separable(nn.Module):
    """Depthwise 3 x 3, BatchNorm, ReLU, 1 x 1, BatchNorm; the caller's ReLU follows."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W c"], train: bool) -> Float[Array, "B h w d"]:
        pad = tuple(_same(size, self.stride) for size in x.shape[1:3])
        x = Depthwise(3, self.stride, pad, name="depthwise")(x)
        x = nn.relu(norm(train, "depthwise_bn", EPSILON)(x))
        return norm(train, "pointwise_bn", EPSILON)(conv(self.width, 1, name="pointwise", mode="fan_in")(x))


def _same(size: int, stride: int) -> tuple[int, int]:
    """TensorFlow's padding of a 3-pixel window."""
    total = max((-(-size // stride) - 1) * stride + 3 - size, 0)
    return total // 2, total - total // 2
