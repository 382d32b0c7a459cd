"""The golden files of `tests/golden/fewshot`, translated from the official code's names and layouts into ours.

Official: images NCHW, kernels OIHW, linear weights [out, in] with `in` flattened as (C, H, W). Ours: NHWC, HWIO,
[in, out] with `in` flattened as (H, W, C).
"""

import functools
import re
from collections.abc import Mapping

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from fewshot.adaptation import Task
from tests import golden_files

_PATHS = {
    r"layer_dict\.conv(\d)\.conv\.weight": r"conv\1/kernel",
    r"layer_dict\.conv(\d)\.norm_layer\.weight": r"norm\1/scale",
    r"layer_dict\.conv(\d)\.norm_layer\.bias": r"norm\1/shift",
    r"layer_dict\.conv(\d)\.norm_layer\.running_mean": r"norm\1/mean",
    r"layer_dict\.conv(\d)\.norm_layer\.running_var": r"norm\1/variance",
    r"layer_dict\.layer(\d)\.conv([12])\.conv\.weight": r"block\1/conv\2/kernel",
    r"layer_dict\.layer(\d)\.conv3\.weight": r"block\1/conv3/kernel",
    r"layer_dict\.layer(\d)\.shortcut_conv\.weight": r"block\1/shortcut/kernel",
    r"layer_dict\.layer(\d)\.conv([12])\.norm_layer\.weight": r"block\1/norm\2/scale",
    r"layer_dict\.layer(\d)\.conv([12])\.norm_layer\.bias": r"block\1/norm\2/shift",
    r"layer_dict\.layer(\d)\.norm_layer\.weight": r"block\1/norm3/scale",
    r"layer_dict\.layer(\d)\.norm_layer\.bias": r"block\1/norm3/shift",
    r"layer_dict\.layer(\d)\.shortcut_norm_layer\.weight": r"block\1/norm_shortcut/scale",
    r"layer_dict\.layer(\d)\.shortcut_norm_layer\.bias": r"block\1/norm_shortcut/shift",
    r"layer_dict\.linear\.weights": "head/kernel",
    r"layer_dict\.linear\.bias": "head/bias",
    r"0\.weight": "hidden/kernel",
    r"0\.bias": "hidden/bias",
    r"2\.weight": "output/kernel",
    r"2\.bias": "output/bias",
}


golden = functools.partial(golden_files.load, "fewshot")


def path(name: str) -> str:
    """Our path of an official parameter name."""
    for pattern, replacement in _PATHS.items():
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    raise KeyError(name)


def images(x: np.ndarray) -> np.ndarray:
    """[..., C, H, W] -> [..., H, W, C]."""
    return np.moveaxis(x, -3, -1)


def flat_features(x: np.ndarray, final_map: tuple[int, int]) -> np.ndarray:
    """[..., C*H*W] -> [..., H*W*C], for a last feature map of height and width `final_map`."""
    maps = x.reshape(*x.shape[:-1], -1, *final_map)
    return images(maps).reshape(x.shape)


def keys(data: Mapping[str, np.ndarray], prefix: str) -> dict[str, str]:
    """{our path: key of the golden file} of all parameters whose key is `prefix` + official name."""
    names = {key: key.removeprefix(prefix) for key in data if key.startswith(prefix)}
    return {path(name): key for key, name in names.items() if name.startswith(("layer_dict", "0.", "2."))}


def layout(ours: str, array: np.ndarray, final_map: tuple[int, int] = (1, 1)) -> np.ndarray:
    """An official parameter array as the one at our path `ours` is laid out; leading axes are kept."""
    if array.ndim == 1 or not ours.endswith("kernel"):
        return array
    if ours.startswith(("conv", "block")):
        return np.moveaxis(array, (-2, -1), (-4, -3)).swapaxes(-1, -2)
    if ours == "head/kernel":
        array = flat_features(array, final_map)
    return array.swapaxes(-1, -2)


def group(data: Mapping[str, np.ndarray], prefix: str, final_map: tuple[int, int] = (1, 1)) -> dict[str, np.ndarray]:
    """The parameters named `prefix` + official name, as {our path: array in our layout}."""
    return {ours: layout(ours, data[key], final_map) for ours, key in keys(data, prefix).items()}


def nested(flat: dict[str, np.ndarray]) -> dict:
    """Nested parameters from {"conv0/kernel": array}."""
    return unflatten_dict(flat, sep="/")


def parameters(data: Mapping[str, np.ndarray]) -> dict:
    """Outer parameters of a trajectory file: "net", "rates" and, for CxGrad, "generator"."""
    net = group(data, "w/")
    rates = group(data, "inner_lr/")
    if not rates:
        adapted = [path(str(name)) for name in data["inner_param_names"]]
        rates = {ours: np.full(int(data["num_steps"]) + 1, data["inner_lr"]) for ours in adapted}
    params = {"net": nested(net), "rates": rates}
    return params | ({"generator": nested(group(data, "G/"))} if "G/0.weight" in data else {})


def tasks(data: Mapping[str, np.ndarray]) -> Task:
    """The tasks of a trajectory file, flattened class by class, with a leading task axis."""
    fields = []
    for part in ("support", "target"):
        x, y = images(data[f"x_{part}"]), data[f"y_{part}"]
        fields += [x.reshape(x.shape[0], -1, *x.shape[3:]), y.reshape(y.shape[0], -1)]
    return Task(*fields)


def cast(tree, dtype):
    """Every floating array of a tree as `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x, tree)


def error(ours, official) -> float:
    """max |a - b| / max |b|, the error measure of the golden files."""
    ours, official = np.asarray(ours, np.float64), np.asarray(official, np.float64)
    assert ours.shape == official.shape, (ours.shape, official.shape)
    return float(np.abs(ours - official).max() / np.abs(official).max())
