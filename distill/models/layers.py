"""What the networks share: convolutions with TensorFlow's SAME padding, initial weights, BatchNorm, sensing points.

Every network is called with (images [B, H, W, c], train) and returns {"logits" [B, K], "features" [B, D], "taps":
{name: (map after its ReLU, map before)}}, the sensing points in order of depth.
"""

import math
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

Taps = dict[str, tuple[Array, Array]]


def scaled_normal(mode: str) -> Any:
    """Normal with variance 1.3 * 2 / fan, cut at two standard deviations and not widened for that (official codes).

    Args:
      mode: "fan_in" (networks of KD-SVD) or "fan_out" (toolbox, IEP).
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Any = float) -> Array:
        fan = math.prod(shape[:-2]) * shape[-2 if mode == "fan_in" else -1]
        return jax.random.truncated_normal(key, -2, 2, shape, dtype) * math.sqrt(2.6 / fan)

    return init


def conv(
    features: int, size: int = 3, stride: int = 1, *, name: str, mode: str = "fan_out", bias: bool = False
) -> nn.Conv:
    """A convolution."""
    window, strides = (size, size), (stride, stride)
    return nn.Conv(features, window, strides, "SAME", use_bias=bias, kernel_init=scaled_normal(mode), name=name)


def dense(features: int, name: str) -> nn.Dense:
    """A fully connected layer; the rule for its weights is the convolutions' with the number of inputs."""
    return nn.Dense(features, kernel_init=scaled_normal("fan_in"), name=name)


def norm(train: bool, name: str, epsilon: float = 1e-5) -> nn.BatchNorm:
    """BatchNorm over the global batch; its moving averages keep 0.9 of what they are."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=epsilon, name=name)


def global_average(x: Float[Array, "B h w c"]) -> Float[Array, "B c"]:
    """Mean over positions."""
    return x.mean((1, 2))


def output(logits: Float[Array, "B K"], features: Float[Array, "B D"], taps: Taps) -> dict[str, Any]:
    """What every network returns."""
    return {"logits": logits, "features": features, "taps": taps}
