"""ResNet for 224-pixel images (He et al. 2016), basic and bottleneck blocks, as the official EKG code has it.

The stride of a bottleneck is in its 3x3 convolution. The stem's gate stands behind the max pooling, and the stem's
channels form the group of stage 0, unless that stage's first block has a projection (bottlenecks: 64 to 256).
"""

from pruning.graph import STEM, Block, Graph, Layer, Shape
from pruning.models.cifar_resnet import basic_block, shortcut

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
EXPANSION = 4  # output channels of a bottleneck, times its width
_BOTTLENECKS = (50,)


def imagenet_resnet(depth: int, num_classes: int = 1000, image_channels: int = 3, width: int = 64) -> Graph:
    """Stem to `width` channels, then four stages `width`, 2, 4 and 8 times as wide (4 times that in bottlenecks).

    Args:
      depth: 18, 34 (basic blocks) or 50 (bottlenecks).
      width: 64 in the paper.
    """
    if depth not in BLOCKS:
        raise ValueError(f"depth is {depth}, but must be one of {', '.join(map(str, BLOCKS))}.")
    build, kind = (bottleneck, "BottleneckBlock") if depth in _BOTTLENECKS else (basic_block, "BasicBlock")
    stem = Shape((Layer("conv", "bn", width, 7, 2),), max_pool=True)
    blocks = [Block(STEM, stem, None, (), "conv")]
    for stage, count in enumerate(BLOCKS[depth]):
        for index in range(count):
            stride = 2 if stage and not index else 1
            blocks.append(build(f"{kind}{stage}.{index}", width * 2**stage, stride, blocks[-1]))
    return Graph(tuple(blocks), num_classes, image_channels)


def bottleneck(name: str, channels: int, stride: int, before: Block) -> Block:
    """1x1, 3x3 and 1x1 convolution; two private gates and that of the group."""
    outside = EXPANSION * channels
    layers = (
        Layer("conv0", "bn0", channels, 1),
        Layer("conv1", "bn1", channels, 3, stride),
        Layer("conv2", "bn2", outside, 1),
    )
    projection, out_gate = shortcut(name, outside, stride, before)
    return Block(
        name,
        Shape(layers, projection, residual=True),
        before.out_gate,
        (f"{name}/conv0", f"{name}/conv1"),
        out_gate,
    )
