"""The convolutions of VGG-19 with batch norm, with torchvision's names: module `features_3` is its `features.3`.

Images are [n, h, w, 3]. Source: Simonyan and Zisserman 2015; the classifier (87 % of the parameters) is not built.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
from jaxtyping import Array, Float

# Filters of each convolution; 0 is a 2x2 max-pooling.
VGG19 = (64, 64, 0, 128, 128, 0, *[256] * 4, 0, *[512] * 4, 0, *[512] * 4, 0)


class VGG(nn.Module):
    """Convolution, batch norm and ReLU counted one by one in `features`, as torchvision does; max-pooling counts one.

    Taps: "features0" ... "features52", the output of that element; computed and built only as far as the deepest.
    """

    taps: Sequence[str]
    layers: Sequence[int] = VGG19

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"]) -> dict[str, Float[Array, "n h2 w2 c"]]:
        found = {}
        for filters in self.layers:
            if filters:
                i = len(found)
                x = found[f"features{i}"] = nn.Conv(filters, (3, 3), padding=1, name=f"features_{i}")(x)
                norm = nn.BatchNorm(use_running_average=True, epsilon=1e-5, name=f"features_{i + 1}")
                x = found[f"features{i + 1}"] = norm(x)
                x = found[f"features{i + 2}"] = jax.nn.relu(x)
            else:
                x = found[f"features{len(found)}"] = nn.max_pool(x, (2, 2), (2, 2))
            if set(self.taps) <= set(found):
                break
        return {name: found[name] for name in self.taps}
