"""The networks against a plain 64-bit form of them, and their gates against the description."""

import jax.numpy as jnp
import numpy as np
import pytest

from pruning.models import ARCHITECTURES
from pruning.models.imagenet_resnet import imagenet_resnet
from pruning.models.mobilenet_v2 import Stage, mobilenet_v2
from tests.pruning import networks, reference
from tests.pruning.networks import every_kind, jit, logits

TINY_MOBILENET = mobilenet_v2(5, 3, (Stage(1, 3, 1, 1), Stage(2, 4, 2, 2)), stem=4, head=6)


@pytest.mark.parametrize(
    ("graph", "side"),
    [(every_kind(), 21), (TINY_MOBILENET, 9), (imagenet_resnet(18, 4, width=2), 40)],
    ids=["every kind of block", "mobilenet_v2", "imagenet_resnet18"],
)
def test_forward(graph, side):
    params, batch_stats = networks.variables(graph, side)
    x = jnp.asarray(networks.formula("images", 4, side, side, 3))
    found = jit(lambda params, stats, x: [logits(graph, params, stats, x, None, mode) for mode in (False, True)])
    for mode, one in zip((False, True), found(params, batch_stats, x), strict=True):
        expected = reference.forward(graph, params, batch_stats, x, mode)
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-4)


def test_gates_of_imagenet_resnets():
    """Basic: the stem's gate is that of stage 0; bottleneck: stage 0 has a projection and so a gate of its own."""
    basic, bottleneck = (ARCHITECTURES[f"imagenet_resnet{depth}"](1000, 3) for depth in (34, 50))
    uses = {gate.name: gate.uses for gate in basic.gates}
    assert {name: count for name, count in uses.items() if count > 1} == {
        "conv": 4,
        "BasicBlock1.0/conv3": 5,
        "BasicBlock2.0/conv3": 7,
        "BasicBlock3.0/conv3": 4,
    }
    assert len(uses) == 4 + sum((3, 4, 6, 3))
    uses = {gate.name: gate.uses for gate in bottleneck.gates}
    assert uses["conv"] == 1
    assert uses["BottleneckBlock0.0/conv3"] == 4
    assert len(uses) == 1 + 4 + 2 * sum((3, 4, 6, 3))
    assert [gate.name for gate in bottleneck.gates][:4] == [
        "conv",
        "BottleneckBlock0.0/conv3",
        "BottleneckBlock0.0/conv0",
        "BottleneckBlock0.0/conv1",
    ]


def test_gates_of_mobilenet_v2():
    graph = ARCHITECTURES["mobilenet_v2"](100, 3)
    gates = {gate.name: gate for gate in graph.gates}
    assert len(gates) == 1 + 17 + 7 + 1  # stem; expansions; outputs of stages; the last convolution
    assert gates["InvertedResidual3.0/project"].uses == 4  # three more blocks add to it
    assert all(gate.uses == 1 for name, gate in gates.items() if name.endswith("/expand"))
    depthwise = [placed for placed in graph.layers if placed.layer.kind == "depthwise"]
    assert len(depthwise) == 17
    assert all(placed.in_gate == placed.out_gate == placed.name.replace("depthwise", "expand") for placed in depthwise)
    assert gates["head/conv"].channels == 1280
    strides = [placed.layer.stride for placed in graph.layers]
    assert strides.count(2) == 3  # 32 pixels to 4


@pytest.mark.parametrize("depth", [20, 101])
def test_depths_that_are_not_there(depth):
    with pytest.raises(ValueError, match=f"depth is {depth}, but must be one of 18, 34, 50"):
        imagenet_resnet(depth)
