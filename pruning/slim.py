"""The slim network: masked channels cut out of every tensor, kernels at their full norm, statistics estimated anew.

Its architecture is `graph.narrow(graph, widths)`; with batch statistics, and with the moving ones that it inherits, it
computes what the masked network computes. The inherited moving statistics describe the unpruned network, though, so
`recalibrate_bn` comes before any evaluation that uses them. Source: official code (spec section 10); EagleEye (Li et
al. 2020) for the cumulative average.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

from common.errors import UserError, did_you_mean
from pruning import complexity
from pruning.graph import Graph
from pruning.masks import TINY
from pruning.models.network import MOMENTUM, Network

PyTree = Any
Kept = dict[str, Int[np.ndarray, " _"]]  # gate -> indices of the surviving channels, ascending


def round_widths(graph: Graph, side: int, keep: Mapping[str, int], round_to: int, target: float) -> dict[str, int]:
    """Widths near `keep` that hardware likes: multiples of `round_to`, or a gate's full width.

    Processors compute 8 or 16 channels in the time of one, so that a network of uneven widths can be slower than the
    whole one. Each width goes to the nearest multiple; then those that went up most (as a share of their gate) go
    down until the FLOPs are at most `target` of the whole network's; then those that went down most go up, as far as
    the target allows. `round_to = 1` changes nothing. Our own; the official code has no such thing.

    Args:
      side: of the images, in pixels.
      target: share of the FLOPs, in the convention "ekg".

    Raises:
      UserError: `round_to` below 1; no widths of this kind cost so little.
    """
    if round_to < 1:
        raise UserError(f"round_to is {round_to}, but must be at least 1.")
    if round_to == 1:
        return dict(keep)
    _check_gates(graph, keep, "width")
    channels = {gate.name: gate.channels for gate in graph.gates}
    bound = target * complexity.totals(graph, side).flops
    widths = {
        name: min(max(round_to, round(keep[name] / round_to) * round_to), count) for name, count in channels.items()
    }

    def moved(name: str, up: bool) -> dict[str, int]:
        low, rest = divmod(widths[name], round_to)
        return {**widths, name: min((low + 1) * round_to, channels[name]) if up else (low - (rest == 0)) * round_to}

    def fits(changed: Mapping[str, int]) -> bool:
        return bool(complexity.totals(graph, side, changed).flops <= bound)

    def excess(name: str) -> float:
        return (widths[name] - keep[name]) / channels[name]

    while not fits(widths):
        falling = [name for name in widths if moved(name, False)[name] >= 1]
        if not falling:
            raise UserError(
                f"Widths of {round_to} channels in every gate cost more than {target:.1%} of the FLOPs: round_to must "
                "be smaller."
            )
        widths = moved(max(falling, key=excess), False)
    while rising := [name for name in widths if widths[name] < keep[name] and fits(moved(name, True))]:
        widths = moved(min(rising, key=excess), True)
    return widths


def keep_indices(graph: Graph, rank: Mapping[str, Any], keep: Mapping[str, int]) -> Kept:
    """Indices of the `keep` channels of lowest rank in each gate, in the channels' own order.

    Args:
      rank: gate -> permutation [c], 0 = most important.
      keep: gate -> how many.

    Raises:
      UserError: a gate that is missing or unknown, a width or a rank that cannot be.
    """
    for what, given in (("rank", rank), ("width", keep)):
        _check_gates(graph, given, what)
    kept = {}
    for gate in graph.gates:
        order, width = np.asarray(rank[gate.name]), int(keep[gate.name])
        if not 1 <= width <= gate.channels:
            raise UserError(f"The width of gate {gate.name} is {width}, but must lie between 1 and {gate.channels}.")
        if not np.array_equal(np.sort(order), np.arange(gate.channels)):
            raise UserError(f"The rank of gate {gate.name} is no permutation of its {gate.channels} channels.")
        kept[gate.name] = np.flatnonzero(order < width)
    return kept


def _check_gates(graph: Graph, given: Iterable[str], what: str) -> None:
    known, names = {gate.name for gate in graph.gates}, set(given)
    for name in sorted(names - known):
        raise UserError(f"There is a {what} of gate {name!r}, which the network lacks{did_you_mean(name, known)}.")
    for name in sorted(known - names):
        raise UserError(f"There is no {what} of gate {name!r}.")


def widths(kept: Kept) -> dict[str, int]:
    """Channels of each gate."""
    return {name: len(indices) for name, indices in kept.items()}


def masks_of(graph: Graph, kept: Kept) -> dict[str, Float[Array, " c"]]:
    """The masks that leave the same channels alive."""
    return {gate.name: jnp.zeros(gate.channels).at[kept[gate.name]].set(1) for gate in graph.gates}


def slice_variables(graph: Graph, params: PyTree, batch_stats: PyTree, kept: Kept) -> tuple[PyTree, PyTree]:
    """(params, batch_stats) of the slim network as NumPy arrays; kernels keep the Frobenius norm of the whole ones."""
    _check_gates(graph, kept, "choice of channels")
    new: dict[str, Any] = {"params": flatten_dict(params), "stats": flatten_dict(batch_stats)}
    for placed in graph.layers:
        depthwise = placed.layer.kind == "depthwise"
        ins = None if depthwise or placed.in_gate is None else kept[placed.in_gate]
        outs = kept[placed.out_gate]
        kernel = (*placed.path, "kernel")
        new["params"][kernel] = _slice_kernel(new["params"][kernel], ins, outs)
        for part, leaf in (("params", "scale"), ("params", "bias"), ("stats", "mean"), ("stats", "var")):
            name = (*placed.norm_path, leaf)
            new[part][name] = np.asarray(new[part][name])[outs]
    head = ("fc", "kernel")
    new["params"][head] = _slice_kernel(new["params"][head], kept[graph.blocks[-1].out_gate], None)
    return unflatten_dict(new["params"]), unflatten_dict(new["stats"])


def _slice_kernel(
    kernel: Any, ins: Int[np.ndarray, " w"] | None, outs: Int[np.ndarray, " v"] | None
) -> Float[np.ndarray, "*window i o"]:
    full = np.asarray(kernel)
    part = full if ins is None else full[..., ins, :]
    part = part if outs is None else part[..., outs]
    squares = np.sum(np.square(part), dtype=np.float64), np.sum(np.square(full), dtype=np.float64)
    return (part * np.sqrt(squares[1] / max(squares[0], TINY))).astype(full.dtype)


def recalibrate_bn(
    graph: Graph, params: PyTree, batch_stats: PyTree, batches: Iterable[Float[Any, "n h w c"]]
) -> PyTree:
    """Moving statistics that are the plain mean of the batches' own.

    Args:
      graph: of the network, full or narrowed.
      batch_stats: their shapes are used, their values are not.
      batches: normalised images, best all of one size (each size compiles a program), best as in training.

    Raises:
      UserError: no batch.
    """
    network = Network(graph, batch_statistics=True)

    @jax.jit
    def moments(params, batch_stats, images):
        # From statistics of 0, one update leaves 1 - momentum of the batch's own.
        zeros = jax.tree.map(jnp.zeros_like, batch_stats)
        _, changed = network.apply({"params": params, "batch_stats": zeros}, images, mutable=["batch_stats"])
        return jax.tree.map(lambda leaf: leaf / (1 - MOMENTUM), changed["batch_stats"])

    total, count = None, 0
    for count, images in enumerate(batches, 1):  # noqa: B007
        found = moments(params, batch_stats, images)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    if total is None:
        raise UserError("BatchNorm statistics cannot be estimated without images: give at least one batch.")
    return jax.tree.map(lambda leaf: leaf / count, total)
