"""Weights of the official PyTorch code (MAML++, CxGrad and ALFA's ResNet-12): read into our parameters, and written.

A checkpoint of the official code holds the state dict of its whole system under "network": the classifier's tensors
(`classifier.layer_dict.conv0.conv.weight`), CxGrad's generator (`gamma_generator.0.weight`) and learned inner rates
(`inner_loop_optimizer.names_learning_rates_dict.layer_dict-conv0-conv-weight`). A bare classifier's state dict, and
one wrapped for several GPUs, are read as well. Images are NCHW there: convolution kernels are [out, in, h, w], and the
head's features are flattened as (C, H, W) instead of our (H, W, C).
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from common.errors import UserError
from common.pretrained import Entry, match, read_weights

NETWORK, GENERATOR = "classifier.", "gamma_generator."
RATES = "inner_loop_optimizer.names_learning_rates_dict."
# The official code's running moments normalise nothing; where there is no row per step they are never even updated.
RUNNING = ("running_mean", "running_var")

_LAYERS = {
    r"conv(\d)": r"conv\1.conv",
    r"norm(\d)": r"conv\1.norm_layer",
    r"block(\d)/conv([12])": r"layer\1.conv\2.conv",
    r"block(\d)/conv3": r"layer\1.conv3",
    r"block(\d)/shortcut": r"layer\1.shortcut_conv",
    r"block(\d)/norm([12])": r"layer\1.conv\2.norm_layer",
    r"block(\d)/norm3": r"layer\1.norm_layer",
    r"block(\d)/norm_shortcut": r"layer\1.shortcut_norm_layer",
    r"head": "linear",
}
_TENSORS = {"kernel": "weight", "bias": "bias", "scale": "weight", "shift": "bias"}
_GENERATOR = {"hidden": "0", "output": "2"}


class Place(NamedTuple):
    """Where one of our leaves is in the official state dict, and how its axes are laid out there."""

    name: str
    to_ours: Callable[[np.ndarray], np.ndarray]
    to_official: Callable[[np.ndarray], np.ndarray]


def read(path: str | Path, template: dict[str, Any]) -> dict[str, Any]:
    """Parameters of the shapes of `template` ("net" and, where there are such, "generator", "rates") from a file.

    Every name on both sides is accounted for; only running moments and the frozen gain of layer norm are left out.

    Raises:
      UserError: no weights file, or weights that are missing, left over, of another shape, or not finite.
    """
    _refuse_sigma(template, f"{path} cannot be read")
    weights = _unwrapped(read_weights(path), path)
    _check_kind(weights, template, path)
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    places = [place(_keys(key_path), template) for key_path, _ in leaves]
    entries = [Entry(spot.name, spot.name, spot.to_ours) for spot in places]
    shapes = {spot.name: leaf for spot, (_, leaf) in zip(places, leaves, strict=True)}
    ignore = [f"*norm_layer.{name}" for name in RUNNING]
    if _has_layer_norm(template):
        _check_frozen_gain(weights, path)
        ignore.append("*norm_layer.weight")
    found = match(weights, entries, shapes, ignore, where=str(path)).tree
    return jax.tree_util.tree_unflatten(structure, [found[spot.name] for spot in places])


def to_official(params: dict[str, Any], running: dict[str, dict[str, Any]] | None = None) -> dict[str, np.ndarray]:
    """The state dict of the official system: {name: array}, complete, so that its strict loading accepts it.

    `running`: MAML++'s running moments per step (`TrainState.model_state`), if there are such. Raises UserError for a
    learned length scale.
    """
    _refuse_sigma(params, "This run cannot be exported")
    official = {}
    for key_path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        spot = place(_keys(key_path), params)
        official[spot.name] = np.ascontiguousarray(spot.to_official(np.asarray(leaf)))
        norm = re.fullmatch(r"(.*norm_layer)\.bias", spot.name)
        if norm is None or spot.name.startswith(RATES):
            continue
        if _has_layer_norm(params):
            official[f"{norm[1]}.weight"] = np.ones_like(official[spot.name])
            continue
        kept = (running or {}).get("/".join(_keys(key_path)[1:-1]))
        for name, ours in zip(RUNNING, ("mean", "variance"), strict=True):
            zeros = np.zeros(official[spot.name].shape, np.float32)
            official[f"{norm[1]}.{name}"] = zeros if kept is None else np.asarray(kept[ours])
    return dict(sorted(official.items()))


def place(keys: tuple[str, ...], params: dict[str, Any]) -> Place:
    """The place of the leaf at `keys`, such as ("net", "conv0", "kernel") or ("rates", "conv0/kernel")."""
    if keys[0] == "generator":
        name = f"{GENERATOR}{_GENERATOR[keys[1]]}.{_TENSORS[keys[2]]}"
        return Place(name, np.transpose, np.transpose) if keys[2] == "kernel" else Place(name, _same, _same)
    if keys[0] == "rates":
        layer, _, tensor = keys[1].rpartition("/")
        return Place(RATES + _official_name(layer, tensor).replace(".", "-"), _same, _same)
    layer, tensor = "/".join(keys[1:-1]), keys[-1]
    name = NETWORK + _official_name(layer, tensor)
    if layer == "head" and tensor == "kernel":
        side = _side_of_last_map(params["net"])
        return Place(name, lambda array: _head_to_ours(array, side), lambda array: _head_to_official(array, side))
    if tensor == "kernel":
        return Place(name, lambda array: np.transpose(array, (2, 3, 1, 0)), lambda x: np.transpose(x, (3, 2, 0, 1)))
    if tensor == "shift" and _has_layer_norm(params):
        return Place(name, lambda array: np.transpose(array, (1, 2, 0)), lambda x: np.transpose(x, (2, 0, 1)))
    return Place(name, _same, _same)


def _official_name(layer: str, tensor: str) -> str:
    for pattern, replacement in _LAYERS.items():
        if re.fullmatch(pattern, layer):
            tensor = "weights" if (layer, tensor) == ("head", "kernel") else _TENSORS[tensor]
            return f"layer_dict.{re.sub(pattern, replacement, layer)}.{tensor}"
    raise ValueError(f"{layer}/{tensor} has no counterpart in the official code")


def _unwrapped(weights: dict[str, np.ndarray], path: str | Path) -> dict[str, np.ndarray]:
    """The arrays by the names of the system's state dict, whatever they were wrapped in."""
    named: dict[str, np.ndarray] = {}
    for name, array in weights.items():
        inner = name.removeprefix("network.").removeprefix("module.").removeprefix(NETWORK).removeprefix("module.")
        whole = inner if inner.startswith((GENERATOR, RATES)) else NETWORK + inner
        if whole in named:
            raise UserError(f"{path} holds {inner} twice, once of them as {name}; keep one of the two.")
        named[whole] = array
    return named


def _check_kind(weights: dict[str, np.ndarray], template: dict[str, Any], path: str | Path) -> None:
    """Name the config field where the file is of another method, network or width than the config."""
    kinds = (
        (GENERATOR, "generator", "CxGrad's scale generator", "--config.method=cxgrad --config.scaling=learned"),
        (RATES, "rates", "learned inner rates", "--config.learned_inner_rates=True"),
    )
    for prefix, group, what, setting in kinds:
        there, here = any(name.startswith(prefix) for name in weights), group in template
        if there and not here:
            raise UserError(f"{path} holds {what} ({prefix}*), for which this config has no place: set {setting}.")
        if here and not there:
            raise UserError(f"{path} lacks {what} ({prefix}*), which {setting} needs: change that, or the file.")
    ours, first = template["net"], {"conv0": "layer_dict.conv0.conv.weight", "block0": "layer_dict.layer0.conv3.weight"}
    for layer, name in first.items():
        kernel = weights.get(NETWORK + name)
        if kernel is None or kernel.ndim != 4:
            continue
        if layer not in ours:
            fits = "conv4" if layer == "conv0" else "resnet12"
            raise UserError(f"{path} is of another network ({name}): set --config.network={fits}.")
        filters = (ours[layer] if layer == "conv0" else ours[layer]["conv3"])["kernel"].shape[-1]
        if kernel.shape[0] != filters:
            raise UserError(
                f"{path} has {kernel.shape[0]} filters ({name} is {list(kernel.shape)}), but config.filters is "
                f"{filters}: set --config.filters={kernel.shape[0]}."
            )


def _check_frozen_gain(weights: dict[str, np.ndarray], path: str | Path) -> None:
    for name, array in weights.items():
        if name.endswith("norm_layer.weight") and not np.all(array == 1):
            raise UserError(f"{path} has a layer norm whose gain {name} is not 1, but only its shift is learned here.")


def _refuse_sigma(params: dict[str, Any], what: str) -> None:
    if "sigma" in params:
        raise UserError(
            f"{what}: the official code has no place for a learned length scale of label propagation; "
            "only --config.propagation.sigma=fixed has none."
        )


def _has_layer_norm(params: dict[str, Any]) -> bool:
    return "norm0" in params["net"] and "scale" not in params["net"]["norm0"]


def _side_of_last_map(net: dict[str, Any]) -> int:
    """Height and width of the square map that the head's features come from; 1 after a global average."""
    channels = net["conv3"]["kernel"].shape[-1] if "conv3" in net else net["head"]["kernel"].shape[0]
    return math.isqrt(net["head"]["kernel"].shape[0] // channels)


def _head_to_ours(array: Float[np.ndarray, "classes CHW"], side: int) -> Float[np.ndarray, "HWC classes"]:
    maps = array.reshape(len(array), -1, side, side)
    return maps.transpose(2, 3, 1, 0).reshape(-1, len(array))


def _head_to_official(array: Float[np.ndarray, "HWC classes"], side: int) -> Float[np.ndarray, "classes CHW"]:
    classes = array.shape[1]
    return array.reshape(side, side, -1, classes).transpose(3, 2, 0, 1).reshape(classes, -1)


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _keys(key_path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(key.key) for key in key_path)
