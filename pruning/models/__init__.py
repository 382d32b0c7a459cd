"""Architectures by name, each a gate graph that `network.Network` computes: (num_classes, channels) -> Graph."""

from collections.abc import Callable
from functools import partial

from pruning.graph import Graph
from pruning.models.cifar_resnet import cifar_resnet
from pruning.models.imagenet_resnet import imagenet_resnet
from pruning.models.mobilenet_v2 import mobilenet_v2

ARCHITECTURES: dict[str, Callable[[int, int], Graph]] = {
    "resnet8": partial(cifar_resnet, 8),  # for tests
    "resnet20": partial(cifar_resnet, 20),
    "resnet56": partial(cifar_resnet, 56),
    "imagenet_resnet18": partial(imagenet_resnet, 18),
    "imagenet_resnet34": partial(imagenet_resnet, 34),
    "imagenet_resnet50": partial(imagenet_resnet, 50),
    "mobilenet_v2": mobilenet_v2,
}
