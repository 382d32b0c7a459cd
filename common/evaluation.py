"""Exact evaluation over a whole set in batches of one size: the last is padded, and the padding is cut off again."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from common import parallel

PyTree = Any


class PerExample:
    """Outputs of `function(state, data, indices [b])` for each of `count` examples or a range of them, as NumPy arrays.

    `function` returns a tree whose leaves have the batch in front. It is compiled once; the batch is split over the
    devices, and its size is rounded up to a multiple of their number. With `fetch`, it gets `fetch(indices)` in their
    place: host arrays or `parallel.Rows` with the batch in front, made while the device computes the batch before.
    """

    def __init__(
        self,
        function: Callable[[PyTree, PyTree, jax.Array], PyTree],
        count: int,
        batch_size: int,
        fetch: Callable[[np.ndarray], PyTree] | None = None,
    ):
        def evaluate(state, data, batch):
            return function(state, data, parallel.constrain_batch(batch))

        self.count, self._fetch = count, fetch
        self._batch_size = -(-min(batch_size, count) // jax.device_count()) * jax.device_count()
        self._compiled = jax.jit(evaluate, out_shardings=parallel.replicated())

    def __call__(self, state: PyTree, data: PyTree, examples: range | None = None) -> PyTree:
        examples = range(self.count) if examples is None else examples
        waiting, outputs = None, []
        for first in range(examples.start, examples.stop, self._batch_size):
            indices = np.minimum(np.arange(first, first + self._batch_size, dtype=np.int32), examples.stop - 1)
            batch = parallel.place(self._fetch(indices) if self._fetch else indices, parallel.batched())
            if waiting is not None:
                outputs.append(jax.device_get(waiting))
            waiting = self._compiled(state, data, batch)
        outputs.append(jax.device_get(waiting))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(examples)], *outputs)


class Mean:
    """Means of per-example values over the whole set: {name: mean} from `function` returning {name: values [b]}."""

    def __init__(
        self, function: Callable[[PyTree, PyTree, jax.Array], dict[str, jax.Array]], count: int, batch_size: int
    ):
        self._values = PerExample(function, count, batch_size)

    def __call__(self, state: PyTree, data: PyTree) -> dict[str, float]:
        return {name: float(np.mean(values, dtype=np.float64)) for name, values in self._values(state, data).items()}
