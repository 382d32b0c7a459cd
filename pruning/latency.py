"""How long the dense, the masked and the slim network take, since fewer FLOPs are not always less time.

Widths that are no multiples of what the hardware computes at once may even be slower: see `slim.round_widths`.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from common.errors import UserError
from pruning.graph import Graph, narrow
from pruning.models.network import Network
from pruning.slim import Kept, masks_of, widths

PyTree = Any


class Row(NamedTuple):
    """One network at one batch size."""

    network: str
    batch_size: int
    milliseconds: float  # the median of the runs, for the whole batch
    times_faster: float  # than the first network at this batch size


class Variant(NamedTuple):
    """`call(arguments, images)`; the arguments are no constants of the compiled program."""

    call: Callable[[PyTree, Any], Any]
    arguments: PyTree


def variants(graph: Graph, variables: PyTree, kept: Kept, slim: PyTree) -> dict[str, Variant]:
    """Dense, masked and slim network in inference mode.

    Args:
      variables, slim: {"params", "batch_stats"} of the whole and of the slim network.
    """

    def inference(graph: Graph, arguments: PyTree, images: Any) -> Any:
        variables, gate_masks = arguments
        return Network(graph).apply(variables, images, gate_masks)

    return {
        "dense": Variant(functools.partial(inference, graph), (variables, None)),
        "masked": Variant(functools.partial(inference, graph), (variables, masks_of(graph, kept))),
        "slim": Variant(functools.partial(inference, narrow(graph, widths(kept))), (slim, None)),
    }


def table(
    networks: Mapping[str, Variant],
    image_shape: Sequence[int],
    batch_sizes: Sequence[int] = (1, 16, 128),
    runs: int = 20,
) -> list[Row]:
    """Measure every network at every batch size on random images of `image_shape` [h, w, c].

    Compiling is not counted. The networks take turns, so that another process that takes the machine for a while slows
    all of them. Raises UserError for fewer than 1 run or image.
    """
    if runs < 1 or not batch_sizes or min(batch_sizes) < 1:
        raise UserError(f"a latency table needs at least 1 run and 1 image, not {runs} and {list(batch_sizes)}.")
    rows = []
    for batch_size in batch_sizes:
        shape = (batch_size, *image_shape)
        images = jax.device_put(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
        compiled = {name: jax.jit(variant.call) for name, variant in networks.items()}
        arguments = {name: jax.device_put(variant.arguments) for name, variant in networks.items()}
        seconds = _measure(
            {name: functools.partial(compiled[name], arguments[name], images) for name in networks}, runs
        )
        medians = {name: float(np.median(values)) for name, values in seconds.items()}
        first = next(iter(medians.values()))
        rows += [Row(name, batch_size, 1000 * median, first / median) for name, median in medians.items()]
    return rows


def _measure(calls: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, Float[np.ndarray, " r"]]:
    for call in calls.values():
        jax.block_until_ready(call())
    seconds = {name: np.zeros(runs) for name in calls}
    for run in range(runs):
        for name, call in calls.items():
            started = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name][run] = time.perf_counter() - started
    return seconds


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown: milliseconds for a batch, and how many times faster than dense."""
    names = list(dict.fromkeys(row.network for row in rows))
    sizes = list(dict.fromkeys(row.batch_size for row in rows))
    cells = {(row.network, row.batch_size): f"{row.milliseconds:.2f} ms ({row.times_faster:.2f}x)" for row in rows}
    head = ["network", *(f"{size} image{'s' * (size > 1)}" for size in sizes)]
    lines = [head, ["---"] * len(head), *([name, *(cells[name, size] for size in sizes)] for name in names)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
