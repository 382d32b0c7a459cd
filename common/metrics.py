"""Metrics as sums and counts, averaged once at the end, and confidence intervals of what they give."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num
from scipy.special import stdtrit

Sums = dict[str, tuple[Num[Array, ""], Num[Array, ""]]]
"""{name: (sum over examples, number of examples)}; a mean is taken in one place only, `means`."""

Numbers = Sequence[float | int] | np.ndarray
_Z95 = 1.96


def means(sums: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Return {name: sum / count} as Python floats, nan where the count is 0; waits for the device."""
    host = jax.device_get(sums)
    return {name: float(total) / float(count) if count else math.nan for name, (total, count) in host.items()}


def weighted(
    values: Num[Array, " n"], weights: Float[Array, " n"] | Int[Array, " n"] | Bool[Array, " n"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return (weighted sum, sum of weights), both float32; a mask of 0 and 1 counts the real examples.

    A value of weight 0 has no influence even if it is nan, as the outputs of padded examples may be.
    """
    weights = weights.astype(jnp.float32)
    return jnp.sum(jnp.where(weights != 0, values * weights, 0.0), dtype=jnp.float32), jnp.sum(weights)


def mean_ci95(values: Numbers) -> tuple[float, float]:
    """Return (mean, half width of the 95 % confidence interval) by Student's t; for a handful of seeds.

    One value gives a half width of nan. Raises ValueError for none.
    """
    numbers = _one_dimensional(values)
    n = numbers.size
    if n == 1:
        return float(numbers[0]), math.nan
    half_width = stdtrit(n - 1, 0.975) * numbers.std(ddof=1) / math.sqrt(n)
    return float(numbers.mean()), float(half_width)


def ci95_normal(values: Numbers) -> float:
    """Return 1.96 std / sqrt(n) with the unbiased variance: the "+-" over test episodes of few-shot papers.

    One value gives nan. Raises ValueError for none.
    """
    numbers = _one_dimensional(values)
    return float(_Z95 * numbers.std(ddof=1) / math.sqrt(numbers.size)) if numbers.size > 1 else math.nan


def ci95_proportion(p: float | int, n: int) -> float:
    """Return 1.96 sqrt(p (1 - p) / n), the half width for a proportion p in [0, 1] of n independent trials.

    Raises ValueError for p outside [0, 1] or n < 1.
    """
    if not 0 <= p <= 1 or n < 1:
        raise ValueError(f"a proportion of {p} in {n} trials is impossible: p must lie in [0, 1] and n be at least 1.")
    return _Z95 * math.sqrt(p * (1 - p) / n)


def paired_difference_ci95(a: Numbers, b: Numbers) -> tuple[float, float]:
    """Return (mean of a - b, half width of its 95 % interval) by Student's t over pairs, such as equal seeds.

    Raises ValueError when the lengths differ or are 0.
    """
    first, second = _one_dimensional(a), _one_dimensional(b)
    if first.size != second.size:
        raise ValueError(f"pairs need equally many values, but there are {first.size} and {second.size}.")
    return mean_ci95(first - second)


def select_top(values: Numbers, k: int) -> list[int]:
    """Positions of the (at most) `k` best values, best first; of equals, the later comes first."""
    ascending = np.argsort(np.asarray(values, np.float64), kind="stable")
    return ascending[::-1][:k].tolist()


def _one_dimensional(values: Numbers) -> np.ndarray:
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or numbers.size == 0:
        raise ValueError(f"a confidence interval needs a list of at least one value, but the shape is {numbers.shape}.")
    return numbers
