"""Wide ResNet (Zagoruyko and Komodakis 2016) as in the code of IEP."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from distill.models.layers import Taps, conv, dense, global_average, norm, output


class WideResNet(nn.Module):
    """Sensing points "stem", "stage1", "stage2", "stage3": the activated input of each stage's first block, and the
    last activation. Images of 64 pixels and more get a first convolution of 7 x 7 with stride 2."""

    num_classes: int
    depth: int = 16  # 6 n + 4
    widths: tuple[int, ...] = (64, 128, 256)
    stem: int = 16
    dropout: float = 0.0  # 0.3 in IEP's students

    @nn.compact
    def __call__(self, x: Float[Array, "B H W c"], train: bool = False) -> dict[str, Any]:
        large = x.shape[1] >= 64
        x = conv(self.stem, 7 if large else 3, 2 if large else 1, name="conv0")(x)
        taps: Taps = {}
        names = ("stem", *(f"stage{stage + 1}" for stage in range(len(self.widths))))
        for stage, width in enumerate(self.widths):
            for block in range((self.depth - 4) // 6):
                stride = 2 if stage and not block else 1
                module = _Block(width, stride, self.dropout, name=f"stage{stage}_block{block}")
                x, tap = module(x, train)
                if not block:
                    taps[names[stage]] = tap
        raw = norm(train, "bn0")(x)
        x = nn.relu(raw)
        taps[names[-1]] = (x, raw)
        features = global_average(x)
        return output(dense(self.num_classes, "full")(features), features, taps)


class _Block(nn.Module):
    """Pre-activation block: (its sum, its input after and before the first ReLU)."""

    width: int
    stride: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "B H W c"], train: bool) -> tuple[Array, tuple[Array, Array]]:
        raw = norm(train, "bn")(x)
        a = nn.relu(raw)
        y = nn.relu(norm(train, "bn0")(conv(self.width, 3, self.stride, name="conv0")(a)))
        if self.dropout:
            y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = conv(self.width, name="conv1")(y)
        if x.shape[-1] != self.width:
            x = conv(self.width, 1, self.stride, name="conv2")(a)
        return x + y, (a, raw)
