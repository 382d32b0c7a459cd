"""ResNet for small images (He et al. 2016) with projection shortcuts, as the official EKG code has it."""

from pruning.graph import STEM, Block, Graph, Layer, Shape


def cifar_resnet(depth: int, num_classes: int, image_channels: int = 3, width: int = 16) -> Graph:
    """Stem to `width` channels, then three stages of (depth - 2) / 6 basic blocks, `width`, 2 and 4 times as wide.

    Args:
      depth: 8, 14, 20, ..., 56, ...: 6 n + 2.
      width: 16 in the paper.
    """
    count, rest = divmod(depth - 2, 6)
    if rest or count < 1:
        raise ValueError(f"depth is {depth}, but must be 6 n + 2, such as 20 or 56.")
    blocks = [Block(STEM, Shape((Layer("conv", "bn", width, 3),)), None, (), "conv")]
    for stage in range(3):
        for index in range(count):
            stride = 2 if stage and not index else 1
            blocks.append(basic_block(f"BasicBlock{stage}.{index}", width * 2**stage, stride, blocks[-1]))
    return Graph(tuple(blocks), num_classes, image_channels)


def basic_block(name: str, channels: int, stride: int, before: Block) -> Block:
    """Two 3x3 convolutions; where the size or the channels change, a 1x1 projection opens a new group."""
    layers = (Layer("conv1", "bn1", channels, 3, stride), Layer("conv2", "bn2", channels, 3))
    projection, out_gate = shortcut(name, channels, stride, before)
    return Block(name, Shape(layers, projection, residual=True), before.out_gate, (f"{name}/conv1",), out_gate)


def shortcut(name: str, channels: int, stride: int, before: Block) -> tuple[Layer | None, str]:
    """The projection of a residual block, if it needs one, and the gate of its sum."""
    if stride == 1 and before.shape.layers[-1].channels == channels:
        return None, before.out_gate
    return Layer("conv3", "bn3", channels, 1, stride), f"{name}/conv3"
