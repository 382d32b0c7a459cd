"""The networks by name, each in one of five families, and what they say about a batch of images."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from common.errors import UserError, did_you_mean
from distill.method import Outputs, Variables
from distill.models.mobilenet import MobileNet
from distill.models.resnet import ResNet
from distill.models.resnext import ResNeXt
from distill.models.vgg import VGG
from distill.models.wide_resnet import WideResNet

_LARGE: dict[str, Any] = {"stem": 16, "widths": (32, 64, 128, 256, 512), "strides": (1, 2, 2, 2, 2)}
_FIVE: dict[str, Any] = {"widths": (64, 128, 256, 512, 512), "pools": ("max", "max", "max", "none", "max")}
_ALL_POOLS: dict[str, Any] = {**_FIVE, "pools": ("max",) * 5}
NETWORKS: dict[str, Callable[..., Any]] = {
    # Toolbox (KD-SVD, MHGD and baselines): for 32 pixels, and for larger images
    **{f"resnet{6 * n + 2}": functools.partial(ResNet, blocks=n) for n in (1, 2, 3, 5)},
    **{f"resnet{10 * n + 2}_large": functools.partial(ResNet, blocks=n, **_LARGE) for n in (1, 5)},
    # KD-SVD
    "vgg": VGG,
    "vgg_teacher": functools.partial(VGG, depths=(2, 2, 3, 3), hidden=(1024, 1024)),
    "vgg_stride": functools.partial(VGG, pools=("stride",) * 4),
    "mobilenet": MobileNet,
    "mobilenet_teacher": functools.partial(MobileNet, repeats=(1, 2, 2, 2)),
    "resnext": ResNeXt,
    "resnext_teacher": functools.partial(ResNeXt, paths=8),
    # MHGD, from the authors' poster
    "mhgd_vgg": functools.partial(VGG, depths=(1,) * 5, **_FIVE),
    "mhgd_vgg_teacher": functools.partial(VGG, depths=(2, 2, 3, 3, 3), hidden=(1024, 1024), **_FIVE),
    "mhgd_vgg_large": functools.partial(VGG, depths=(1,) * 5, **_ALL_POOLS),
    "mhgd_vgg_teacher_large": functools.partial(VGG, depths=(2, 2, 3, 3, 3), hidden=(1024, 1024), **_ALL_POOLS),
    "mhgd_resnet": functools.partial(ResNet, stem=16),
    "mhgd_mobilenet": functools.partial(MobileNet, stem=16, widths=(64, 128, 256), repeats=(1, 2, 2)),
    "vgg_modified": functools.partial(
        VGG,
        **{"stem": 16, "widths": (64, 128, 256), "depths": (2, 2, 2), "pools": ("none", "first", "first")},
        **{"hidden": (), "batch_norm": True},
    ),
    # IEP: wrn<depth>_<widening>; the students of the paper drop 30 % of the activations
    **{
        f"wrn{depth}_{widen}": functools.partial(WideResNet, depth=depth, widths=(16 * widen, 32 * widen, 64 * widen))
        for depth, widen in ((10, 4), (16, 1), (16, 2), (16, 4), (22, 4), (40, 4))
    },
}
_TAPS = {WideResNet: ("stage1", "stage2", "stage3"), ResNeXt: ("stem", "block1", "block2", "block3")}


class Network(NamedTuple):
    """A network and its sensing points."""

    module: nn.Module
    taps: tuple[str, ...]


def make_network(
    name: str, num_classes: int, width: float = 1.0, dropout: float = 0.0, taps: tuple[str, ...] = (), field: str = ""
) -> Network:
    """The network of this name.

    Args:
      name: one of `NETWORKS`.
      num_classes: width of the logits.
      width: factor on all numbers of channels.
      dropout: of wide ResNets; the other families have their own.
      taps: names of the sensing points, () for the family's own.
      field: the config group, for messages.

    Raises:
      UserError: an unknown name, or a width that leaves no channel.
    """
    if name not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise UserError(
            f"config.{field}.network is {name!r}, but must be one of {known}{did_you_mean(name, NETWORKS)}."
        )
    module = NETWORKS[name](num_classes=num_classes)
    scaled = {}
    for attribute in ("stem", "widths", "hidden", "path_width"):
        value = getattr(module, attribute, None)
        if value:
            scaled[attribute] = (
                tuple(round(v * width) for v in value) if isinstance(value, tuple) else round(value * width)
            )
    smallest = min(min(value) if isinstance(value, tuple) else value for value in scaled.values())
    if smallest < 1:
        raise UserError(f"config.{field}.width is {width}, but must leave at least one channel in every layer.")
    if isinstance(module, WideResNet):
        scaled["dropout"] = dropout
    module = module.clone(**scaled)
    return Network(module, tuple(taps) or _TAPS.get(type(module), ()))


def init(network: Network, key: Array, image_shape: tuple[int, ...]) -> Variables:
    """Fresh parameters and BatchNorm statistics."""
    found = network.module.init(key, jnp.zeros((1, *image_shape)))
    return Variables(found["params"], found.get("batch_stats", {}))


def run(
    network: Network, variables: Variables, images: Float[Array, "B H W c"], key: Array | None = None
) -> tuple[Outputs, Any]:
    """(outputs, BatchNorm statistics). With `key` (of dropout) in training mode, without it in inference mode.

    Raises:
      UserError: a sensing point that the network does not have.
    """
    tree = {"params": variables.params, "batch_stats": variables.state}
    if key is None:
        out: Any = network.module.apply(tree, images)
        state = variables.state
    else:
        out, changed = network.module.apply(tree, images, True, mutable=["batch_stats"], rngs={"dropout": key})
        state = changed.get("batch_stats", {})
    taps = out["taps"]
    names = network.taps or tuple(taps)
    for name in names:
        if name not in taps:
            raise UserError(
                f"this network has no sensing point {name!r}{did_you_mean(name, taps)}; it has {', '.join(taps)}."
            )
    maps, raw = (tuple(taps[name][i] for name in names) for i in (0, 1))
    return Outputs(out["logits"], maps, raw, out["features"]), state


def output_shapes(network: Network, image_shape: tuple[int, ...], batch: int = 2) -> Outputs:
    """Shapes of what the network says about a batch; nothing is computed."""

    def outputs() -> Outputs:
        variables = init(network, jax.random.key(0), image_shape)
        return run(network, variables, jnp.zeros((batch, *image_shape)))[0]

    return jax.eval_shape(outputs)
