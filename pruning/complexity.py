"""FLOPs and parameters from the widths of the gates, in two conventions, for one square image.

"ekg": what the paper's ratios are made of. Multiply-accumulates of convolutions and the dense layer, and 2 for every
  element that BatchNorm normalises; its moving statistics count as parameters.
"macs": what most tools print. Multiply-accumulates of convolutions and the dense layer; trainable parameters.

Sums, activations, pooling and biases cost nothing in either. Whole numbers throughout. Widths may be arrays, so that
all candidates of a search step are counted at once. Source: official code.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Integer

from common.errors import UserError
from pruning.graph import STEM, Graph

COUNTS = ("ekg", "macs")
Width = int | np.integer | np.ndarray  # arrays: int64 [k]


class Totals(NamedTuple):
    """Whole numbers, or int64 arrays of them, one for each candidate."""

    flops: Width
    params: Width


def convolution(positions: int, window: int, ins: Width, outs: Width) -> Totals:
    """`positions` pixels of the output, `window` taps of the kernel, no bias; depthwise: `ins` is 1."""
    return Totals(positions * window * ins * outs, window * ins * outs)


def normalisation(positions: int, channels: Width, count: str = "ekg") -> Totals:
    """BatchNorm with scale and bias."""
    return Totals(2 * positions * channels, 4 * channels) if count == "ekg" else Totals(0 * channels, 2 * channels)


def dense(ins: Width, outs: int) -> Totals:
    """Linear layer with bias."""
    return Totals(ins * outs, ins * outs + outs)


def layer_costs(
    graph: Graph, side: int, widths: Mapping[str, Width] | None = None, count: str = "ekg"
) -> dict[str, Totals]:
    """Cost of every convolution, its BatchNorm, and `fc`, by name, in the official order.

    Args:
      side: of the input image, in pixels.
      widths: gate -> channels kept; gates that are left out keep all.
      count: "ekg" or "macs".

    Raises:
      UserError: an unknown gate or count, or a width that is not between 1 and the gate's channels.
    """
    if count not in COUNTS:
        raise UserError(f"count is {count!r}, but must be one of {', '.join(COUNTS)}.")
    kept: dict[str | None, Width] = {gate.name: gate.channels for gate in graph.gates}
    for name, width in (widths or {}).items():
        channels = graph.gate(name).channels
        if np.min(width) < 1 or np.max(width) > channels:
            raise UserError(f"The width of gate {name} is {width}, but must lie between 1 and {channels}.")
        kept[name] = width if isinstance(width, int) else np.asarray(width, np.int64)
    kept[None] = graph.image_channels
    costs = {}
    for placed, positions in zip(graph.layers, positions_of_layers(graph, side), strict=True):
        depthwise = placed.layer.kind == "depthwise"
        ins, outs = 1 if depthwise else kept[placed.in_gate], kept[placed.out_gate]
        costs[placed.name] = convolution(positions, placed.layer.kernel**2, ins, outs)
        costs["/".join(placed.norm_path).removeprefix(f"{STEM}/")] = normalisation(positions, outs, count)
    costs["fc"] = dense(kept[graph.blocks[-1].out_gate], graph.num_classes)
    return costs


def totals(graph: Graph, side: int, widths: Mapping[str, Width] | None = None, count: str = "ekg") -> Totals:
    """Sum of `layer_costs`: numbers, or arrays [k] where widths are arrays [k]."""
    costs = layer_costs(graph, side, widths, count).values()
    return Totals(sum(cost.flops for cost in costs), sum(cost.params for cost in costs))


def flops_of(
    graph: Graph, side: int, keeps: Integer[np.ndarray, "k gates"], count: str = "ekg"
) -> Int64[np.ndarray, " k"]:
    """FLOPs of k candidates, each given by the channels kept in every gate, in the graph's order of gates."""
    widths = {gate.name: keeps[:, i] for i, gate in enumerate(graph.gates)}
    return np.asarray(totals(graph, side, widths, count).flops, np.int64)


def positions_of_layers(graph: Graph, side: int) -> Iterator[int]:
    """Pixels of each layer's output, in the order of `graph.layers`: 'SAME' padding, a stride divides, rounded up."""
    for block in graph.blocks:
        shape, branch = block.shape, side
        if shape.projection is not None:
            yield (-(-side // shape.projection.stride)) ** 2
        for layer in shape.layers:
            branch = -(-branch // layer.stride)
            yield branch**2
        side = -(-branch // 2) if shape.max_pool else branch
