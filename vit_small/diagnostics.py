"""What attention does, from its probabilities [B, heads, queries, keys] of each layer: pure functions, in numpy.

The official code has none of the paper's analyses; these definitions are ours.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Attention = Float[np.ndarray, "B h N M"]


def entropy(attention: Attention) -> float:
    """Mean over queries, heads and images of -sum p log p, in nats; 0 log 0 is 0."""
    logarithm = np.log(attention, where=attention > 0, out=np.zeros_like(attention))
    return float(-(attention * logarithm).sum(axis=-1).mean())


def kl_to_uniform(attention: Attention, allowed: int) -> float:
    """Mean of KL(row || uniform over `allowed` tokens) = log(allowed) - entropy."""
    return float(np.log(allowed)) - entropy(attention)


def diagonal(attention: Attention) -> float:
    """Mean probability with which a token attends to itself."""
    return float(np.diagonal(attention, axis1=-2, axis2=-1).mean())


def class_token_map(attention: Attention, grid: tuple[int, int]) -> Float[np.ndarray, "B rows columns"]:
    """What the class token (query 0) gives to each patch, mean over heads."""
    first = attention[:, :, 0].mean(axis=1)
    patches = first[:, first.shape[-1] - grid[0] * grid[1] :]  # keys may or may not hold the class token itself
    return patches.reshape(-1, *grid)


def rollout(layers: Sequence[Attention]) -> Float[np.ndarray, "B N N"]:
    """Attention roll-out (Abnar and Zuidema 2020): the product over layers of the heads' mean, half of it identity."""
    result = None
    for attention in layers:
        mean = attention.mean(axis=1)
        mixed = 0.5 * mean + 0.5 * np.eye(mean.shape[-1])
        mixed /= mixed.sum(axis=-1, keepdims=True)
        result = mixed if result is None else mixed @ result
    if result is None:
        raise ValueError("a roll-out needs at least one layer.")
    return result


def pooling_matrix(grid: tuple[int, int]) -> Float[np.ndarray, "M N"]:
    """How a pooling of 2 x 2 patches, with a class token in front, spreads relevance: evenly over the four."""
    rows, columns = grid[0] // 2, grid[1] // 2
    matrix = np.zeros((1 + rows * columns, 1 + grid[0] * grid[1]))
    matrix[0, 0] = 1
    for row in range(grid[0] // 2 * 2):
        for column in range(grid[1] // 2 * 2):
            matrix[1 + row // 2 * columns + column // 2, 1 + row * grid[1] + column] = 0.25
    return matrix


def received(attention: Attention, grid: tuple[int, int], shift: int) -> Float[np.ndarray, "images rows columns"]:
    """Of window attention: the mean probability that each token gets from its window, on the grid of the image."""
    window = round(attention.shape[-1] ** 0.5)
    mean = attention.mean(axis=(1, 2))
    split = mean.reshape(-1, grid[0] // window, grid[1] // window, window, window)
    image = split.transpose(0, 1, 3, 2, 4).reshape(-1, *grid)
    return np.roll(image, (shift, shift), (1, 2))


def temperatures(scales: Float[np.ndarray, "layers t"]) -> Float[np.ndarray, "layers t"]:
    """1 / s of each layer and head."""
    return 1.0 / scales
