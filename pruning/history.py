"""Which interim sub-networks of the search become teachers.

Targets divide the range of losses evenly, from the lowest on; each takes the nearest network that is still free.
Source: official code (spec section 6); the paper has the same grid in another order.
"""

import numpy as np
from jaxtyping import Float


def select_teachers(losses: Float[np.ndarray, " n"], count: int) -> list[int]:
    """Places of `count` teachers, in the order of their targets: the lowest loss first.

    Args:
      losses: of every network of the search but the last, which is the slim one.
      count: K; if there are fewer networks, all of them.
    """
    order = np.argsort(losses, kind="stable")
    ordered = np.asarray(losses, np.float64)[order]
    count = min(count, len(ordered))
    free, chosen = np.ones(len(ordered), bool), []
    for k in range(count):
        target = ordered[0] + k * (ordered[-1] - ordered[0]) / count
        place = int(np.argmin(np.where(free, np.abs(ordered - target), np.inf)))
        free[place] = False
        chosen.append(int(order[place]))
    return chosen
