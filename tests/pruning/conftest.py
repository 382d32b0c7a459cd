"""The real ResNet-56, read once."""

import jax
import numpy as np
import pytest

from pruning import official_weights
from pruning.models.cifar_resnet import cifar_resnet
from tests.pruning import networks


@pytest.fixture(scope="session")
def resnet56():
    """(graph, variables) of the official checkpoint, or skip."""
    graph = cifar_resnet(56, 10)
    params, stats = official_weights.read(networks.shared_file("res56_cifar10_weights"), graph)
    return graph, jax.device_put({"params": params, "batch_stats": stats})


@pytest.fixture
def resnet56_float64(resnet56, float64):
    """The same in 64 bits, for tests of gradients: in 32 a ReLU at its kink may go either way, which moves the
    importance of filters by thousandths of the largest."""
    graph, variables = resnet56
    return graph, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
