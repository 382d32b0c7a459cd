"""Frozen networks that feed other methods: what each is called, where its features are tapped, and its weights.

    backbone = get_backbone("wide_resnet50_2")       one of BACKBONES; options for how the reference taps it
    variables = load_variables(backbone, weights)    {"params", "batch_stats"} from "model:tag", a file, or "random"
    taps = extract_taps(backbone, variables, images) {tap name: [n, h, w, c]} of images in 0..255, in order of depth

Variables are never trained here: batch norm uses the stored statistics. A dict that leaves a compiled function comes
back sorted by name; `backbone.taps` holds the order.
"""

import dataclasses
import math
import os
import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float, Shaped

from common.errors import UserError, did_you_mean
from common.models.efficientnet import B5, LITE0, PADDINGS, EfficientNet, timm_names
from common.models.resnet import TAP_ACTIVATIONS, ResNet
from common.models.vgg import VGG
from common.models.weights import find_weights
from common.pretrained import flatten_tree, match, nest, read_weights, torch_entries

_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_LITE = ((127.0,) * 3, (128.0,) * 3)


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A network and the features that CFA takes from it (specs of the paper's code; Lite0: our choice)."""

    name: str
    module: nn.Module  # variables, images -> {endpoint: features}
    taps: Mapping[str, tuple[str, ...]]  # tap name -> endpoints whose channels are concatenated, in order of depth
    channels: tuple[int, ...]  # of each tap
    strides: tuple[int, ...]  # input pixels per position of each tap
    mean: tuple[float, ...]  # of RGB pixels in 0..255
    std: tuple[float, ...]
    default_weights: str  # "model:tag" of the weights that the reference uses
    unused: tuple[str, ...]  # patterns of the weights behind the deepest tap


def _resnet(name: str, options: Mapping[str, str], **form: Any) -> Backbone:
    layers = ("layer1", "layer2", "layer3")
    width = 4 if form.get("bottleneck") else 1
    return Backbone(
        name,
        ResNet(taps=layers, tap_activation=options["tap_activation"], **form),
        {layer: (layer,) for layer in layers},
        (64 * width, 128 * width, 256 * width),
        (4, 8, 16),
        *_IMAGENET,
        f"{name}:tv_in1k",
        ("layer4.*", "fc.*"),
    )


def _resnet18(options: Mapping[str, str]) -> Backbone:
    return _resnet("resnet18", options)


def _wide_resnet50_2(options: Mapping[str, str]) -> Backbone:
    return _resnet("wide_resnet50_2", options, blocks=(3, 4, 6, 3), bottleneck=True, width=2)


def _vgg19_bn(options: Mapping[str, str]) -> Backbone:
    endpoints = ("features25", "features38", "features52")
    return Backbone(
        "vgg19_bn",
        VGG(taps=endpoints),
        {endpoint: (endpoint,) for endpoint in endpoints},
        (256, 512, 512),
        (4, 8, 32),
        *_IMAGENET,
        "vgg19_bn:tv_in1k",
        ("classifier.*", "pre_logits.*", "head.*"),
    )


def _efficientnet_b5(options: Mapping[str, str]) -> Backbone:
    blocks = {"stage2": range(3, 8), "stage3": range(10, 13), "stage5": range(26, 27)}
    taps = {name: tuple(f"block{i}" for i in numbers) for name, numbers in blocks.items()}
    endpoints = tuple(endpoint for group in taps.values() for endpoint in group)
    form = {"stages": B5, "stem": 48, "head": 2048, "squeeze": True, "nominal_size": 456}
    return Backbone(
        "efficientnet_b5",
        EfficientNet(taps=endpoints, padding=options["padding"], **form),
        taps,
        (200, 192, 176),
        (4, 8, 16),
        *_IMAGENET,
        "efficientnet_b5:aa_in1k",
        ("blocks.[56].*", "conv_head.*", "bn2.*", "classifier.*"),
    )


def _efficientnet_lite0(options: Mapping[str, str]) -> Backbone:
    endpoints = ("block2", "block4", "block10")
    return Backbone(
        "efficientnet_lite0",
        EfficientNet(taps=endpoints, stages=LITE0, padding=options["padding"]),
        {endpoint: (endpoint,) for endpoint in endpoints},
        (24, 40, 112),
        (4, 8, 16),
        *_LITE,
        "efficientnet_lite0:package",
        ("blocks.[56].*", "conv_head.*", "bn2.*", "classifier.*"),
    )


BACKBONES = {
    "resnet18": _resnet18,
    "wide_resnet50_2": _wide_resnet50_2,
    "vgg19_bn": _vgg19_bn,
    "efficientnet_b5": _efficientnet_b5,
    "efficientnet_lite0": _efficientnet_lite0,
}


def get_backbone(name: str, tap_activation: str = "leaky_relu", padding: str = "nominal") -> Backbone:
    """The backbone called `name`.

    Args:
      name: one of `BACKBONES`.
      tap_activation: of the taps of ResNets: "leaky_relu" (official CFA code) or "relu" (anomalib).
      padding: of EfficientNets: "nominal" (official code: amounts of the nominal size at any size) or "same".

    Raises:
      UserError: a value that is none of these.
    """
    for field, value, known in (
        ("backbone", name, tuple(BACKBONES)),
        ("tap_activation", tap_activation, TAP_ACTIVATIONS),
        ("padding", padding, PADDINGS),
    ):
        if value not in known:
            raise UserError(f"{field} is {value!r}, but must be one of {', '.join(known)}{did_you_mean(value, known)}.")
    return BACKBONES[name]({"tap_activation": tap_activation, "padding": padding})


def variables_template(backbone: Backbone) -> dict[str, Any]:
    """Shapes and dtypes of the variables, computing nothing."""
    return jax.eval_shape(backbone.module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


def load_variables(
    backbone: Backbone, weights: str | os.PathLike[str], key: str | None = None, prefix: str = "", seed: int = 0
) -> dict[str, Any]:
    """Variables of the backbone up to its deepest tap, on the device.

    Args:
      backbone: see `get_backbone`.
      weights: "model:tag" (`common.models.weights.SOURCES`), the path of a .safetensors or PyTorch file with
        torchvision's, timm's or (EfficientNet) the reference port's names, or "random", never chosen silently.
      key: dictionary of a checkpoint that holds the weights, see `read_weights`.
      prefix: beginning of the names to take, see `read_weights`.
      seed: of "random" weights.

    Raises:
      UserError: weights that cannot be found, read or fitted; every missing or unexpected name counts.
    """
    source = find_weights(backbone.name, weights)
    if source is None:
        logging.warning("The weights of backbone %s are random.", backbone.name)
        return _random(variables_template(backbone), seed)
    found = read_weights(source, key, prefix)
    if isinstance(backbone.module, EfficientNet):
        found = timm_names(found, backbone.module.stages)
    template = variables_template(backbone)
    ignore = ("*num_batches_tracked", *backbone.unused)
    matched = match(found, torch_entries(template), template, ignore, f"{source} for backbone {backbone.name}")
    logging.info(
        "Backbone %s: %d tensors of %s, %d behind the last tap left out.",
        *(backbone.name, len(matched.used), source, len(matched.ignored)),
    )
    return jax.tree.map(jnp.asarray, matched.tree)


def _random(template: dict[str, Any], seed: int) -> dict[str, Any]:
    """He-normal kernels, norms that do nothing; drawn leaf by leaf, which spares compiling the network's own init."""
    flat = {}
    for path, leaf in flatten_tree(template).items():
        if path.endswith("kernel"):
            noise = np.random.default_rng((seed, zlib.crc32(path.encode()))).standard_normal(leaf.shape, np.float32)
            flat[path] = jnp.asarray(noise * np.float32(2 / math.prod(leaf.shape[:-1])) ** 0.5)
        else:
            flat[path] = jnp.full(leaf.shape, 1.0 if path.endswith(("scale", "var")) else 0.0)
    return nest(flat)


def extract_taps(
    backbone: Backbone, variables: Mapping[str, Any], images: Shaped[Array, "n h w 3"]
) -> dict[str, Float[Array, "n h2 w2 c"]]:
    """Features of RGB images with pixels in 0..255 (integers or floats), by tap name, gradients stopped.

    Pure and traceable: pass variables as an argument of the compiled function.
    """
    endpoints: Any = backbone.module.apply(variables, normalize(backbone, images))
    return {  # stopped one by one, because a dict that goes through jax comes back sorted
        name: jax.lax.stop_gradient(jnp.concatenate([endpoints[part] for part in parts], axis=-1))
        for name, parts in backbone.taps.items()
    }


def normalize(backbone: Backbone, images: Shaped[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
    """Pixels in 0..255 -> what the network was trained on: (pixel - mean) / std for each channel."""
    mean, std = (jnp.asarray(values, jnp.float32)[None, None, None] for values in (backbone.mean, backbone.std))
    return (images.astype(jnp.float32) - mean) / std
