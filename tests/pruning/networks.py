"""Golden files, weights from a formula, and a small network that has every kind of block."""

import functools
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pruning import masks
from pruning.graph import STEM, Block, Graph, Layer, Shape
from pruning.models.cifar_resnet import basic_block
from pruning.models.imagenet_resnet import bottleneck
from pruning.models.mobilenet_v2 import Stage, inverted_residual
from pruning.models.network import Network
from tests import golden_files

SHARED = Path(__file__).parents[2].parent / "shared" / "golden" / "pruning"  # files with real trained weights
# Compiled with little optimisation: these tests compile more than they compute.
jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
MEAN, STD = (np.array(values, np.float32) for values in ((113.9, 123.0, 125.3), (66.7, 62.1, 63.0)))


golden = functools.partial(golden_files.load, "pruning")


def shared_file(name):
    """A file beside the checkout, or skip."""
    file = SHARED / f"{name}.npz"
    if not file.is_file():
        pytest.skip(f"{name}.npz, which holds real trained weights, is not part of the repository")
    return file


def shared(name):
    """All arrays of a file beside the checkout, or skip."""
    with np.load(shared_file(name)) as stored:
        return dict(stored)


def images(count):
    """The first golden images, normalised as the real checkpoint wants them."""
    return jnp.asarray((golden("inputs")["images"][:count].astype(np.float32) - MEAN) / STD)


def formula(name, *shape):
    """Standard normal numbers that belong to a name."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def variables(graph, side=32):
    """(params, batch_stats) from a formula: every scale, bias and statistic differs from its first value."""
    shapes = jax.eval_shape(
        lambda: Network(graph).init(jax.random.key(0), jnp.zeros((1, side, side, graph.image_channels)))
    )

    def leaf(path, shape):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        drawn = formula(name, *shape.shape)
        if name.endswith("kernel"):
            return drawn * np.sqrt(2 / np.prod(shape.shape[:-1]))
        if name.endswith(("scale", "var")):
            return 1 + 0.3 * np.tanh(drawn)
        return 0.2 * drawn

    tree = jax.tree_util.tree_map_with_path(leaf, shapes)
    tree = jax.tree.map(jnp.asarray, tree)
    return tree["params"], tree["batch_stats"]


def every_kind(num_classes=3):
    """Max pooling, basic blocks with and without projection, bottleneck, inverted residuals with and without sum."""
    blocks = [Block(STEM, Shape((Layer("conv", "bn", 4, 3, 2),), max_pool=True), None, (), "conv")]
    blocks.append(basic_block("BasicBlock0.0", 4, 1, blocks[-1]))
    blocks.append(basic_block("BasicBlock1.0", 3, 2, blocks[-1]))
    blocks.append(bottleneck("Bottleneck0.0", 1, 1, blocks[-1]))
    blocks.append(inverted_residual("InvertedResidual0.0", Stage(1, 3, 2, 1), 1, blocks[-1]))
    blocks.append(inverted_residual("InvertedResidual0.1", Stage(1, 3, 2, 1), 1, blocks[-1]))
    return Graph(tuple(blocks), num_classes)


def ranks(graph, seed=0):
    """A random rank of each gate."""
    random = np.random.default_rng(seed)
    return {gate.name: random.permutation(gate.channels) for gate in graph.gates}


def keep(graph, rates):
    """Channels kept at these rates, one for each gate in order."""
    return {gate.name: masks.keep_count(gate.channels, rate) for gate, rate in zip(graph.gates, rates, strict=True)}


def logits(graph, params, batch_stats, x, gate_masks=None, batch_statistics=False):
    """Of a network, full, masked or slim."""
    weights = jax.tree.map(jnp.asarray, {"params": params, "batch_stats": batch_stats})
    return Network(graph, batch_statistics).apply(weights, x, gate_masks)
