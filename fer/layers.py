"""A linear layer that starts as PyTorch's does."""

import math

import flax.linen as nn
import jax
from jaxtyping import Array


def linear(features: int, inputs: int, name: str, use_bias: bool = True) -> nn.Dense:
    """x W + b, to be called inside a module; both start uniform in +-1 / sqrt(inputs)."""
    bound = 1.0 / math.sqrt(inputs)

    def uniform(key: Array, shape: tuple[int, ...], dtype=float) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(features, use_bias, kernel_init=uniform, bias_init=uniform, name=name)
