"""How much each channel of each gate matters, by five criteria behind one interface: gate name -> score [c].

The members of a coupled group must die together, so what their layers say is added up.

    taylor    |derivative of the search score by a factor at the gated activation|, summed over uses and batches: the
              first-order change when the channel goes (Molchanov et al. 2017, Gate Decorator, You et al. 2019; EKG)
    l1        L1 norm of the filter's kernel (Li et al. 2017)
    fpgm      sum of the filter's distances to the layer's other filters (He et al. 2019)
    bn_gamma  |gamma| of the batch normalisation behind the filter (Liu et al. 2017)
    random    a uniform draw
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pruning import pieces
from pruning.graph import Graph, PlacedLayer
from pruning.models.network import block_masks, tap_gates, tap_names

Scores = dict[str, Float[Any, " _"]]


class Evidence(NamedTuple):
    """What a criterion may look at. Variables are {"params", "batch_stats"}; masks those of the current network."""

    variables: Any
    masks: Mapping[str, Float[Any, " _"]]
    images: Float[Any, "n h w 3"]  # one batch, normalised
    labels: Int[Any, " n"]
    teacher: Float[Any, "n classes"] | None
    key: Array  # the same for every batch of a step


def taylor(graph: Graph, evidence: Evidence) -> Scores:
    """sum over uses of |d score / d tap|, where the score is summed over the batch before the absolute value.

    Backwards block by block, each computed again from its input: blocks of one shape share a compiled program, which
    saves most of the compilation, and memory, for one more pass forwards.
    """
    inputs, x = [], pieces.split_over_devices(evidence.images)
    blocks = [(b, pieces.variables_of(b, evidence.variables), block_masks(b, evidence.masks)) for b in graph.blocks]
    for block, own, masks in blocks:
        inputs.append(x)
        x = pieces.run_block(block.shape, own, x, masks)
    out_mask = evidence.masks[graph.blocks[-1].out_gate]
    head = evidence.variables["params"]["fc"]
    slope = pieces.pull_head(graph.num_classes, head, x, out_mask, evidence.labels, evidence.teacher)
    gates, found = tap_gates(graph), {}
    for (block, own, masks), x in zip(reversed(blocks), reversed(inputs), strict=True):
        slope, taps = pieces.pull_block(block.shape, own, x, masks, slope)
        found |= dict(zip(tap_names(block), taps, strict=True))
    return _add_up(graph, [(gate, jnp.abs(found[name])) for name, gate in gates.items()])


def l1(graph: Graph, evidence: Evidence) -> Scores:
    """Sum of |k| of each filter."""
    return _per_filter(graph, evidence, lambda layer: jnp.abs(_kernel(evidence, layer)).sum((0, 1, 2)))


def fpgm(graph: Graph, evidence: Evidence) -> Scores:
    """Sum of Euclidean distances to all filters of the layer: small near the geometric median, which others replace."""

    def distances(layer: PlacedLayer) -> Float[Any, " _"]:
        kernel = _kernel(evidence, layer)
        filters = kernel.reshape(-1, kernel.shape[-1]).T
        square = jnp.square(filters).sum(1)
        between = square[:, None] + square[None] - 2 * filters @ filters.T
        return jnp.sqrt(jnp.maximum(between, 0.0)).sum(1)

    return _per_filter(graph, evidence, distances)


def bn_gamma(graph: Graph, evidence: Evidence) -> Scores:
    """|gamma|."""

    def gamma(layer: PlacedLayer) -> Float[Any, " _"]:
        block, norm = layer.norm_path
        return jnp.abs(evidence.variables["params"][block][norm]["scale"])

    return _per_filter(graph, evidence, gamma)


def random(graph: Graph, evidence: Evidence) -> Scores:
    """Uniform in [0, 1)."""
    keys = jax.random.split(evidence.key, len(graph.gates))
    return {gate.name: jax.random.uniform(key, (gate.channels,)) for gate, key in zip(graph.gates, keys, strict=True)}


CRITERIA: dict[str, Callable[[Graph, Evidence], Scores]] = {
    "taylor": taylor,
    "l1": l1,
    "fpgm": fpgm,
    "bn_gamma": bn_gamma,
    "random": random,
}


def gate_scores(graph: Graph, criterion: str, evidence: Evidence) -> Scores:
    """Scores of one batch; add them up over the batches. Channels that are masked already score exactly 0."""
    scores = CRITERIA[criterion](graph, evidence)
    return {name: score * evidence.masks[name] for name, score in scores.items()}


def _kernel(evidence: Evidence, layer: PlacedLayer) -> Float[Any, "h w i o"]:
    block, name = layer.path
    return evidence.variables["params"][block][name]["kernel"]


def _per_filter(graph: Graph, evidence: Evidence, criterion: Callable[[PlacedLayer], Float[Any, " _"]]) -> Scores:
    del evidence
    return _add_up(graph, [(layer.out_gate, criterion(layer)) for layer in graph.layers])


def _add_up(graph: Graph, parts: list[tuple[str, Float[Any, " _"]]]) -> Scores:
    scores = {gate.name: jnp.zeros(gate.channels) for gate in graph.gates}
    for name, part in parts:
        scores[name] = scores[name] + part
    return scores
