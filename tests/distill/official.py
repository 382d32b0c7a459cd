"""Golden arrays, official variable names of the networks, and the weights that belong to those names."""

import re
import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from distill import models
from distill.method import Variables
from tests import golden_files

LEAVES = {"kernel": "weights", "scale": "gamma", "mean": "moving_mean", "var": "moving_variance"}
SCOPES = {
    "resnet8": "Student",
    "resnet32": "Teacher",
    "wrn16_4": "Student",
    "wrn40_4": "Teacher",
    "vgg": "vgg13_std",
    "vgg_teacher": "vgg6",
    "mobilenet": "mobile_small",
    "mobilenet_teacher": "mobile",
    "resnext": "ECCV_small",
    "resnext_teacher": "ECCV",
}


golden = partial(golden_files.load, "distill")


def _layer(network, layer):
    """Our layer's official name within its network."""
    if network.startswith(("resnet", "wrn")):
        block = "WResblock" if network.startswith("wrn") else "Resblock"
        return re.sub(r"^stage(\d)_block(\d)", rf"{block}\1/BasicBlock\2", layer)
    if network.startswith("vgg"):
        first = 1 if network == "vgg_teacher" else 2
        layer = re.sub(r"^full(\d)", lambda match: f"full{first + int(match[1])}", layer)
        return re.sub(r"^block(\d)_conv", r"block\1/conv", layer).replace("logits", "full3")
    if network.startswith("mobilenet"):
        number = re.match(r"stage(\d)_block(\d)", layer)
        if number:
            stage, block = int(number[1]), int(number[2])
            layer = layer.replace(number[0], f"mobile{2 * stage - 1 + block if stage else 0}")
        layer = layer.replace("depthwise_bn", "dw_batch_norm").replace("pointwise_bn", "pw_batch_norm")
        return re.sub(r"(depthwise|pointwise)$", r"\1_conv", layer).replace("full", "full3")
    layer = re.sub(r"^block(\d)", r"bottleneck\1", layer)
    layer = re.sub(r"path(\d)_bn(\d)", r"node\1/batch\2", layer).replace("bn0", "batch0")
    layer = re.sub(r"path(\d)_conv0", r"node\1/pintwise_conv", layer)
    layer = re.sub(r"path(\d)_conv1", r"node\1/group_conv", layer)
    return layer.replace("transition_bn", "transition_batch").replace("full", "full3")


def _name(network, path):
    """Our leaf's official name."""
    layer, leaf = _layer(network, "/".join(path[:-1])), path[-1]
    kind = LEAVES.get(leaf, "beta" if re.search(r"(bn\d?|batch\d?|batch_norm)$", layer) else "biases")
    return f"{SCOPES[network]}/{layer}/{'depthwise_weights' if layer.endswith('depthwise_conv') else kind}"


def _weights(name, shape):
    """The stored networks' weights: a formula of the name and the shape in TensorFlow's layout."""
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    kind = name.rpartition("/")[2]
    if kind == "weights":
        z = z * np.sqrt(2 / np.prod(shape[:-1]))
    elif kind == "depthwise_weights":
        z = z * np.sqrt(2 / 9)
    elif kind == "moving_variance":
        z = 1 + 0.1 * abs(z)
    else:
        z = 0.1 * z + (kind == "gamma")
    return z.astype(np.float32)


def build(network, classes=100):
    """(network, its golden weights, {official name: shape})."""
    made = models.make_network(network, classes)
    like = jax.eval_shape(lambda: models.init(made, jax.random.key(0), (32, 32, 3)))
    names, trees = {}, []
    for tree in like:
        flat = {}
        for path, leaf in flatten_dict(tree).items():
            name, shape = _name(network, path), leaf.shape
            depthwise = name.endswith("depthwise_weights")
            names[name] = (*shape[:2], shape[3], 1) if depthwise else shape
            array = _weights(name, names[name])
            flat[path] = jnp.asarray(array.transpose(0, 1, 3, 2) if depthwise else array)
        trees.append(unflatten_dict(flat))
    return made, Variables(*trees), names


def close(actual, expected, tolerance, what=""):
    """Difference relative to the largest absolute entry."""
    expected = np.asarray(expected)
    scale = max(float(np.abs(expected).max()), 1e-30)
    np.testing.assert_allclose(np.asarray(actual) / scale, expected / scale, rtol=0, atol=tolerance, err_msg=what)
