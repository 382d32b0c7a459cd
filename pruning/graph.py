"""The gate graph: which channels of a network live and die together.

A gate is one decision, "which channels survive", shared by every tensor that must agree: the convolutions that produce
the channels, their batch normalisations, the sums that add them and the layers that read them. A graph is plain
data, the same for every architecture: a chain of blocks, each a branch of convolutions with or without a shortcut.

        in_gate            inner_gates[0]      inner_gates[1]             out_gate
    x ----------> layers[0] -----------> layers[1] -----------> layers[2] ---(+)---> y
          \\--------------------- identity or projection --------------------/

Source: Lee and Song, ECCV 2022; the order of the layers, which fixes the order of the gates, is the official code's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from common.errors import UserError, did_you_mean

STEM = "stem"  # the first block, whose name is left out in the names of its layers


@dataclass(frozen=True)
class Layer:
    """A convolution without bias and the batch normalisation behind it."""

    name: str  # inside its block: "conv1"
    norm: str  # "bn1"
    channels: int  # it produces
    kernel: int  # side, in pixels
    stride: int = 1
    kind: str = "conv"  # or "depthwise", whose input and output share a gate


@dataclass(frozen=True)
class Shape:
    """What a block computes, without names of gates: blocks of one shape share one compiled program.

    Every layer of the branch but the last is followed by the activation; the last by the sum with the shortcut, then
    (`activate_output`) by the activation, then (`max_pool`) by 3x3 pooling with stride 2.
    """

    layers: tuple[Layer, ...]
    projection: Layer | None = None  # of the shortcut
    residual: bool = False  # add the shortcut: the projection or, without one, the input
    activation: str = "relu"  # or "relu6"
    activate_output: bool = True
    max_pool: bool = False


@dataclass(frozen=True)
class Block:
    """A shape and the gates of its tensors."""

    name: str  # "BasicBlock0.0", or STEM
    shape: Shape
    in_gate: str | None  # None: the image, which is never pruned
    inner_gates: tuple[str, ...]  # behind each layer of the branch but the last
    out_gate: str


@dataclass(frozen=True)
class Gate:
    """One decision.

    Attributes:
      name: of the layer that produces its channels first.
      channels: how many there are.
      uses: convolutions that produce them, depthwise ones aside.
    """

    name: str
    channels: int
    uses: int


@dataclass(frozen=True)
class PlacedLayer:
    """A layer, its full name and the gates that it lies between."""

    name: str  # "BasicBlock0.0/conv1", as the official code has it
    path: tuple[str, str]  # in the parameter tree
    norm_path: tuple[str, str]  # of its batch normalisation there, and in the moving statistics
    layer: Layer
    in_gate: str | None
    out_gate: str
    block: int


@dataclass(frozen=True)
class Graph:
    """Blocks in order, then global average pooling and a dense layer `fc` that reads the last block's gate."""

    blocks: tuple[Block, ...]
    num_classes: int
    image_channels: int = 3

    @cached_property
    def layers(self) -> tuple[PlacedLayer, ...]:
        """Every convolution, in the official order: a block's projection before its branch."""
        return tuple(layer for i, block in enumerate(self.blocks) for layer in _place(block, i))

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        """Every gate, in the order in which the layers produce them first."""
        found: dict[str, Gate] = {}
        for placed in self.layers:
            gate = found.get(placed.out_gate, Gate(placed.out_gate, placed.layer.channels, 0))
            if gate.channels != placed.layer.channels:
                raise ValueError(
                    f"{placed.name} gives {placed.layer.channels} channels to gate {gate.name} of {gate.channels}."
                )
            found[gate.name] = replace(gate, uses=gate.uses + (placed.layer.kind != "depthwise"))
        return tuple(found.values())

    @cached_property
    def first_block(self) -> dict[str, int]:
        """Gate name -> the first block whose result depends on the gate."""
        first: dict[str, int] = {}
        for placed in self.layers:
            first.setdefault(placed.out_gate, placed.block)
        return first

    def gate(self, name: str) -> Gate:
        """The gate of this name; raises UserError for one that does not exist."""
        for gate in self.gates:
            if gate.name == name:
                return gate
        names = [gate.name for gate in self.gates]
        raise UserError(f"There is no gate {name!r}{did_you_mean(name, names)}; the gates are {', '.join(names)}.")

    def in_channels(self, gate: str | None) -> int:
        """Channels of a layer's input: those of its gate, or the image's."""
        return self.image_channels if gate is None else self.gate(gate).channels


def _place(block: Block, index: int) -> Iterator[PlacedLayer]:
    def placed(layer: Layer, in_gate: str | None, out_gate: str) -> PlacedLayer:
        name = layer.name if block.name == STEM else f"{block.name}/{layer.name}"
        path, norm_path = (block.name, layer.name), (block.name, layer.norm)
        return PlacedLayer(name, path, norm_path, layer, in_gate, out_gate, index)

    if block.shape.projection is not None:
        yield placed(block.shape.projection, block.in_gate, block.out_gate)
    gates = (block.in_gate, *block.inner_gates, block.out_gate)
    for layer, in_gate, out_gate in zip(block.shape.layers, gates, gates[1:], strict=False):
        yield placed(layer, in_gate, str(out_gate))


def narrow(graph: Graph, widths: Mapping[str, int]) -> Graph:
    """The graph with `widths[gate]` channels in each gate: the architecture of the slim network.

    Raises UserError for an unknown gate, or a width that is not between 1 and the gate's channels.
    """
    for name, width in widths.items():
        channels = graph.gate(name).channels
        if not 1 <= width <= channels:
            raise UserError(f"The width of gate {name} is {width}, but must lie between 1 and {channels}.")

    def narrowed(layer: Layer, gate: str) -> Layer:
        return replace(layer, channels=widths.get(gate, layer.channels))

    blocks = []
    for block in graph.blocks:
        gates = (*block.inner_gates, block.out_gate)
        layers = tuple(narrowed(layer, gate) for layer, gate in zip(block.shape.layers, gates, strict=True))
        projection = block.shape.projection and narrowed(block.shape.projection, block.out_gate)
        blocks.append(replace(block, shape=replace(block.shape, layers=layers, projection=projection)))
    return replace(graph, blocks=tuple(blocks))
