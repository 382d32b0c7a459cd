"""The plain convolutional networks of KD-SVD and MHGD: blocks of 3 x 3 convolutions and pools, no shortcuts."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from distill.models.layers import Taps, conv, dense, global_average, norm, output


class VGG(nn.Module):
    """Sensing points "block1", "block2", ...: the ends of the blocks, behind their pools.

    Attributes:
      depths: convolutions of each block.
      pools: how each block halves the image: "max", "stride" (its last convolution), "first" (its first) or "none".
      stem: channels of a convolution before the blocks; 0: none.
      hidden: widths of the fully connected layers on the flattened map; (): the mean over positions in their place.
    """

    num_classes: int
    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (1, 1, 1, 1)
    pools: tuple[str, ...] = ("max",) * 4
    stem: int = 0
    hidden: tuple[int, ...] = (1024,)
    dropout: float = 0.5
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B H W c"], train: bool = False) -> dict[str, Any]:
        taps: Taps = {}
        if self.stem:
            x = nn.relu(self._conv(x, train, self.stem, 1, "stem"))
        for i, (width, depth, pool) in enumerate(zip(self.widths, self.depths, self.pools, strict=True)):
            raw = x
            for j in range(depth):
                strided = (pool == "stride" and j == depth - 1) or (pool == "first" and j == 0)
                raw = self._conv(x, train, width, 2 if strided else 1, f"block{i}_conv{j}")
                if pool == "max" and j == depth - 1:
                    raw = nn.max_pool(raw, (2, 2), (2, 2))  # before the ReLU or after: the same
                x = nn.relu(raw)
            taps[f"block{i + 1}"] = (x, raw)
        x = x.reshape(len(x), -1) if self.hidden else global_average(x)
        for i, width in enumerate(self.hidden):
            x = nn.relu(dense(width, f"full{i}")(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return output(dense(self.num_classes, "logits")(x), x, taps)

    def _conv(self, x: Array, train: bool, width: int, stride: int, name: str) -> Array:
        x = conv(width, 3, stride, name=name, mode="fan_in", bias=not self.batch_norm)(x)
        return norm(train, f"{name}_bn")(x) if self.batch_norm else x
