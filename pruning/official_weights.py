"""The official checkpoint of a CIFAR ResNet (an .npz file of `<layer>/<tensor>`) as this folder's parameters."""

from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from common import npz
from common.errors import UserError
from pruning.graph import STEM, Graph

_TENSORS = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}


def read(path: Path, graph: Graph) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and moving statistics of `graph` from the file.

    Raises UserError if the file cannot be read, or holds another architecture.
    """
    try:
        tensors = npz.read(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as an .npz file of weights ({type(error).__name__}).") from error
    wanted = _wanted(graph)
    found: dict[tuple[str, ...], np.ndarray] = {}
    for path_in_tree, (name, shape) in wanted.items():
        if name not in tensors:
            raise UserError(f"{path} has no tensor {name}: it is another architecture than config.model.architecture.")
        if tensors[name].shape != shape:
            raise UserError(
                f"{path}: {name} is {list(tensors[name].shape)}, but the network has {list(shape)}: another "
                "architecture or number of classes."
            )
        found[path_in_tree] = np.asarray(tensors[name], np.float32)
    extra = set(tensors) - {name for name, _ in wanted.values()} - {"__layer_order__"}
    if extra:
        raise UserError(f"{path} has a tensor {min(extra)} that the network lacks: it is another architecture.")
    trees = [unflatten_dict({p[1:]: v for p, v in found.items() if p[0] == part}) for part in ("params", "stats")]
    return trees[0], trees[1]


def _wanted(graph: Graph) -> dict[tuple[str, ...], tuple[str, tuple[int, ...]]]:
    """Path in ("params" | "stats", ...) -> the official tensor's name and shape."""
    wanted: dict[tuple[str, ...], tuple[str, tuple[int, ...]]] = {}
    for placed in graph.layers:
        layer, (block, norm) = placed.layer, placed.norm_path
        inputs = 1 if layer.kind == "depthwise" else graph.in_channels(placed.in_gate)
        shape = (layer.kernel, layer.kernel, inputs, layer.channels)
        wanted["params", *placed.path, "kernel"] = (f"{placed.name}/kernel", shape)
        prefix = norm if block == STEM else f"{block}/{norm}"
        for theirs, ours in _TENSORS.items():
            part = "stats" if ours in ("mean", "var") else "params"
            wanted[part, *placed.norm_path, ours] = (f"{prefix}/{theirs}", (layer.channels,))
    wanted["params", "fc", "kernel"] = (
        "fc/kernel",
        (graph.gate(graph.blocks[-1].out_gate).channels, graph.num_classes),
    )
    wanted["params", "fc", "bias"] = ("fc/biases", (graph.num_classes,))
    return wanted
