"""Which gates are worth evaluating: those whose next filters carry little importance ("layer pre-selection").

In the official code only; the paper's poster shows no trace of it. Source: spec section 5.4 and its golden files.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

MARKINGS = ("scores", "release", "all")
EXHAUSTED = 1e12  # a gate that nothing can be taken from
_TRIMMED = 0.2


def next_mass(
    scores: Sequence[Float[np.ndarray, "..."]],
    rates: Float[np.ndarray, " g"],
    steps: Float[np.ndarray, " g"],
    release: bool = False,
) -> Float[np.ndarray, " g"]:
    """Sum of the scores of the filters that go next in each gate.

    Args:
      scores: [c] of each gate, 0 for filters that are gone.
      rates: share of filters that each gate keeps; 0 = it is exhausted.
      steps: share that would go.
      release: as the official code does, whose slice runs along the wrong axis: an untouched gate counts its total
        score, a touched one 0.
    """
    mass = np.full(len(scores), EXHAUSTED)
    for i, score in enumerate(scores):
        if rates[i] > 0:
            ordered = np.sort(np.asarray(score, np.float64))
            # Python's rounding, half to even, as in the official code.
            first, last = (round((1 - rates[i] + more) * len(ordered)) for more in (0.0, float(steps[i])))
            mass[i] = ordered[None][first:last].sum() if release else ordered[first:last].sum()
    return mass


def trimmed_otsu(values: Float[np.ndarray, " n"]) -> float | None:
    """Threshold between small and large values that separates the two means most, without the extremes.

    The ceil(0.2 n) smallest and largest are left out; the last split is never tried (official). None if fewer than
    3 values are left, where the official code fails.
    """
    drop = int(np.ceil(_TRIMMED * len(values)))
    kept = np.sort(values)[drop : len(values) - drop]
    count = len(kept)
    if count < 3:
        return None
    spread = [t * (count - t) * (kept[:t].mean() - kept[t:].mean()) ** 2 for t in range(1, count - 1)]
    best = int(np.argmax(spread)) + 1
    return float(kept[best - 1] + kept[best]) / 2


def mark(mass: Float[np.ndarray, " g"], marking: str = "scores") -> tuple[Bool[np.ndarray, " g"], float]:
    """The gates to evaluate and the threshold; with too few gates for one, all that have something to give."""
    alive = mass < EXHAUSTED
    threshold = None if marking == "all" else trimmed_otsu(mass[alive])
    if threshold is None:
        return alive, float("inf")
    return alive & (mass <= threshold), threshold
