"""MobileNet-v2 for small images (Sandler et al. 2018): stem of stride 1, and the same blocks as the original.

The official EKG code has no such network; this is the one of its author's earlier pruning code, which keeps the 1x1
expansion even where the expansion is 1. The gates are the usual ones, and our choice:

* the expansion's channels are one gate for the expansion and the depthwise convolution, which makes none of its own;
* blocks that add their input share the gate of their output with the block that begins the run;
* every other block's linear output, the stem and the last 1x1 convolution have a gate each.

As in the ResNets here, the last scale of a residual branch begins at 0.
"""

from collections.abc import Sequence
from typing import NamedTuple

from pruning.graph import STEM, Block, Graph, Layer, Shape


class Stage(NamedTuple):
    """`repeats` blocks; the stride is that of the first."""

    expansion: int
    channels: int
    repeats: int
    stride: int


STAGES = (
    *(Stage(1, 16, 1, 1), Stage(6, 24, 2, 2), Stage(6, 32, 3, 1), Stage(6, 64, 4, 2)),
    *(Stage(6, 96, 3, 1), Stage(6, 160, 3, 2), Stage(6, 320, 1, 1)),
)


def mobilenet_v2(
    num_classes: int,
    image_channels: int = 3,
    stages: Sequence[Stage] = STAGES,
    stem: int = 32,
    head: int = 1280,
) -> Graph:
    """3x3 convolution to `stem` channels, inverted residual blocks, 1x1 convolution to `head` channels; ReLU6."""
    blocks = [Block(STEM, _single(Layer("conv", "bn", stem, 3)), None, (), "conv")]
    for number, stage in enumerate(stages):
        for index in range(stage.repeats):
            stride = stage.stride if index == 0 else 1
            blocks.append(inverted_residual(f"InvertedResidual{number}.{index}", stage, stride, blocks[-1]))
    blocks.append(Block("head", _single(Layer("conv", "bn", head, 1)), blocks[-1].out_gate, (), "head/conv"))
    return Graph(tuple(blocks), num_classes, image_channels)


def inverted_residual(name: str, stage: Stage, stride: int, before: Block) -> Block:
    """1x1 expansion, 3x3 depthwise and linear 1x1 convolution; adds its input where the shapes agree."""
    came = before.shape.layers[-1].channels
    inside = came * stage.expansion
    layers = (
        Layer("expand", "bn0", inside, 1),
        Layer("depthwise", "bn1", inside, 3, stride, kind="depthwise"),
        Layer("project", "bn2", stage.channels, 1),
    )
    residual = stride == 1 and came == stage.channels
    shape = Shape(layers, residual=residual, activation="relu6", activate_output=False)
    gate = f"{name}/expand"
    return Block(name, shape, before.out_gate, (gate, gate), before.out_gate if residual else f"{name}/project")


def _single(layer: Layer) -> Shape:
    return Shape((layer,), activation="relu6")
