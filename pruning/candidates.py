"""Logits of many candidate sub-networks on the same images, in three forms that give the same numbers.

    one_by_one  each candidate is a pass of the whole network, its masks being arguments of one compiled program
    batched     candidates are a leading axis of the activations and share the kernels (see `masked_convolution`)
    prefix      a candidate differs from the current network in one gate, so all blocks before that gate's first are
                computed once for all; blocks of one shape share a compiled program

Normalisation takes the statistics of each candidate's own batch, so a batch is never split between calls. No form
compiles anything after its first call for the same sizes. `AUTOMATIC`: what benchmarks/pruning_speed.py found fastest.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from common import parallel
from pruning import pieces
from pruning.graph import Graph
from pruning.models.network import Network, block_masks

FORMS = ("one_by_one", "batched", "prefix")
AUTOMATIC = {"cpu": "prefix"}  # other backends: "batched"

Masks = Mapping[str, Float[Any, " _"]]
Change = tuple[str, Float[Any, " _"]]  # a gate and its mask in a candidate


class Evaluator:
    """`evaluator(variables, images, masks, changes)`: logits [k, n, classes] of k candidates, as a NumPy array.

    Args of a call: variables {"params", "batch_stats"} of the whole network; normalised images [n, h, w, c]; the masks
    of the current network; and for each candidate the one gate that differs. Images go in batches of `batch_size`.
    """

    def __init__(self, graph: Graph, form: str, batch_size: int, chunk: int = 8):
        """`chunk`: candidates at a time in the batched form."""
        form = AUTOMATIC.get(jax.default_backend(), "batched") if form == "automatic" else form
        self.graph, self.form, self.batch_size, self.chunk = graph, form, batch_size, chunk
        self._run = {"one_by_one": self._one_by_one, "batched": self._batched, "prefix": self._prefix}[form]

    def __call__(
        self, variables: Any, images: Float[Any, "n h w c"], masks: Masks, changes: Sequence[Change]
    ) -> Float[np.ndarray, "k n classes"]:
        parts = []
        for first in range(0, len(images), self.batch_size):
            waiting = self._run(variables, images[first : first + self.batch_size], masks, changes)
            parts.append(np.asarray(jax.device_get(waiting)))
        return np.concatenate(parts, axis=1)

    def _one_by_one(self, variables: Any, images: Any, masks: Masks, changes: Sequence[Change]) -> list[Array]:
        return [whole(self.graph, variables, images, {**masks, gate: mask}) for gate, mask in changes]

    def _batched(self, variables: Any, images: Any, masks: Masks, changes: Sequence[Change]) -> list[np.ndarray]:
        chunks: list[np.ndarray] = []
        for first in range(0, len(changes), self.chunk):
            some = changes[first : first + self.chunk]
            padded = [*some, *[some[-1]] * (self.chunk - len(some))]
            stacked = {name: np.repeat(np.asarray(mask)[None], self.chunk, 0) for name, mask in masks.items()}
            for row, (gate, mask) in enumerate(padded):
                stacked[gate][row] = mask
            chunks.extend(np.asarray(_many(self.graph, variables, images, stacked))[: len(some)])
        return chunks

    def _prefix(self, variables: Any, images: Any, masks: Masks, changes: Sequence[Change]) -> list[Array]:
        starts = [self.graph.first_block[gate] for gate, _ in changes]
        logits: dict[int, Array] = {}
        x = pieces.split_over_devices(images)
        for i in range(max(starts) + 1):
            for j in (j for j, start in enumerate(starts) if start == i):
                gate, mask = changes[j]
                logits[j] = self._rest(variables, x, {**masks, gate: mask}, i)
            x = self._block(variables, x, masks, i)
        return [logits[j] for j in range(len(changes))]

    def _rest(self, variables: Any, x: Any, masks: Masks, first: int) -> Array:
        for i in range(first, len(self.graph.blocks)):
            x = self._block(variables, x, masks, i)
        last = self.graph.blocks[-1].out_gate
        return pieces.run_head(self.graph.num_classes, variables["params"]["fc"], x, masks[last])

    def _block(self, variables: Any, x: Any, masks: Masks, i: int) -> Array:
        block = self.graph.blocks[i]
        return pieces.run_block(block.shape, pieces.variables_of(block, variables), x, block_masks(block, masks))


@partial(jax.jit, static_argnums=0)
def whole(graph: Graph, variables: Any, images: Float[Any, "n h w c"], masks: Masks) -> Float[Any, "n classes"]:
    """Logits of one sub-network with statistics of this batch."""
    logits: Any = Network(graph, batch_statistics=True).apply(variables, parallel.constrain_batch(images), masks)
    return logits


@partial(jax.jit, static_argnums=0)
def _many(
    graph: Graph, variables: Any, images: Float[Any, "n h w c"], masks: Mapping[str, Float[Any, "k _"]]
) -> Float[Any, "k n classes"]:
    count = len(next(iter(masks.values())))
    images = jnp.broadcast_to(parallel.constrain_batch(images)[None], (count, *images.shape))
    logits: Any = Network(graph, batch_statistics=True).apply(variables, images, masks)
    return logits
