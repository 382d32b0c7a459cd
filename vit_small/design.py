"""The switches that all five architectures share."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Design:
    """What is fixed before compilation, beside the sizes of an architecture."""

    spt: bool = False
    spt_pool: bool = True  # SPT for the pooling layers of PiT and Swin too
    directions: str = "diagonal4"
    shift_ratio: float = 0.5  # of the patch
    fused: bool = False  # SPT as one convolution
    learned_temperature: bool = False  # first half of LSA
    temperature_per: str = "head"  # or "layer"
    mask_diagonal: bool = False  # second half of LSA
    drop_path: float = 0.0  # stochastic depth
    drop_path_form: str = "official"  # or "constant", "linear"
    token_std: float | None = None  # of fresh class tokens and positions; None: as the official code has it
    scan: bool = True  # layers as a loop: the same parameters and numbers, faster to compile
    dtype: Any = None  # of the matrix products; None: that of their inputs
    taps: bool = False  # return attention and the input of every block as well

    def drop_rates(self, depth: int, official: str) -> Float[np.ndarray, " depth"]:
        """Rate of each block: the same, or linear from 0 to `drop_path` over all blocks."""
        form = official if self.drop_path_form == "official" else self.drop_path_form
        if form == "constant":
            return np.full(depth, self.drop_path, np.float32)
        return np.linspace(0.0, self.drop_path, depth, dtype=np.float32)
