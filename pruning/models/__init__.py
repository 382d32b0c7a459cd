"""Architectures by name, each a gate graph that `network.Network` computes: name -> (num_classes, channels) -> Graph."""

from collections.abc import Callable
from functools import partial

from pruning.graph import Graph
from pruning.models.cifar_resnet import cifar_resnet

ARCHITECTURES: dict[str, Callable[[int, int], Graph]] = {
    "resnet8": partial(cifar_resnet, 8),  # for tests
    "resnet20": partial(cifar_resnet, 20),
    "resnet56": partial(cifar_resnet, 56),
}
