"""The convolutions of AlexNet with torchvision's names: module `features_3` is its `features.3`.

Images are [n, h, w, 3]. Source: Krizhevsky 2014 ("One weird trick"), as torchvision has it, without the classifier.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# (place, filters, kernel, stride, padding); a 3x3 max-pooling with stride 2 follows those in _POOLED.
_CONVOLUTIONS = ((0, 64, 11, 4, 2), (3, 192, 5, 1, 2), (6, 384, 3, 1, 1), (8, 256, 3, 1, 1), (10, 256, 3, 1, 1))
_POOLED = (0, 3, 10)
SMALLEST_SIDE = 63  # below it nothing is left after the last pooling


class AlexNet(nn.Module):
    """Five convolutions, average pooling to `grid` x `grid`, flattened channel first as in PyTorch: [n, 256 grid²]."""

    grid: int = 6

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"], train: bool = False) -> Float[Array, "n d"]:
        del train  # nothing here behaves otherwise
        for place, filters, kernel, stride, pad in _CONVOLUTIONS:
            padding = ((pad, pad), (pad, pad))
            x = jax.nn.relu(nn.Conv(filters, (kernel, kernel), stride, padding, name=f"features_{place}")(x))
            if place in _POOLED:
                x = nn.max_pool(x, (3, 3), (2, 2))
        return adaptive_average_pool(x, self.grid).transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


def adaptive_average_pool(x: Float[Array, "n h w c"], size: int) -> Float[Array, "n s s c"]:
    """Means over bins floor(i n / size) .. ceil((i + 1) n / size) of both axes; bins of small images overlap."""
    rows, columns = (_bins(side, size, x.dtype) for side in x.shape[1:3])
    return jnp.einsum("ih,nhwc,jw->nijc", rows, x, columns)


def _bins(side: int, size: int, dtype: jnp.dtype) -> Float[Array, "s n"]:
    weights = np.zeros((size, side))
    for i in range(size):
        start, end = i * side // size, -(-(i + 1) * side // size)
        weights[i, start:end] = 1.0 / (end - start)
    return jnp.asarray(weights, dtype)
