"""The ResNeXt of KD-SVD: three blocks of parallel paths."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill.models.layers import Taps, conv, global_average, norm, output

EPSILON = 1e-3


class ResNeXt(nn.Module):
    """Sensing points "stem", "block1", "block2", "block3"."""

    num_classes: int
    paths: int = 2  # 8 in the teacher
    path_width: int = 64
    widths: tuple[int, ...] = (64, 128, 256)

    @nn.compact
    def __call__(self, x: Float[Array, "B H W c"], train: bool = False) -> dict[str, Any]:
        raw = norm(train, "bn0", EPSILON)(conv(self.path_width, name="conv0", mode="fan_in")(x))
        x = nn.relu(raw)
        taps: Taps = {"stem": (x, raw)}
        for i, width in enumerate(self.widths):
            raw = _Block(self.paths, self.path_width, width, 2 if i else 1, name=f"block{i}")(x, train)
            x = nn.relu(raw)
            taps[f"block{i + 1}"] = (x, raw)
        features = global_average(x)
        logits = nn.Dense(self.num_classes, kernel_init=nn.initializers.glorot_uniform(), name="full")(features)
        return output(logits, features, taps)


class _Block(nn.Module):
    """Paths side by side, a 1 x 1 convolution over them, and the shortcut; without the last ReLU."""

    paths: int
    path_width: int
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W c"], train: bool) -> Float[Array, "B h w d"]:
        ends = []
        for i in range(self.paths):
            y = conv(self.path_width, 1, name=f"path{i}_conv0", mode="fan_in")(x)
            y = nn.relu(norm(train, f"path{i}_bn0", EPSILON)(y))
            y = conv(self.path_width, 3, self.stride, name=f"path{i}_conv1", mode="fan_in")(y)
            ends.append(nn.relu(norm(train, f"path{i}_bn1", EPSILON)(y)))
        y = conv(self.width, 1, name="transition", mode="fan_in")(jnp.concatenate(ends, axis=-1))
        y = norm(train, "transition_bn", EPSILON)(y)
        if self.stride > 1:
            missing = self.width - x.shape[-1]
            channels = (missing // 2, missing - missing // 2)  # a quarter of the new width on both sides
            x = jnp.pad(nn.avg_pool(x, (2, 2), (2, 2)), ((0, 0), (0, 0), (0, 0), channels))
        return x + y
