"""The golden files of `tests/golden/fewshot`, translated from the official code's names and layouts into ours.

Official: images NCHW, kernels OIHW, linear weights [out, in] with `in` flattened as (C, H, W). Ours: NHWC, HWIO,
[in, out] with `in` flattened as (H, W, C).
"""

import functools
import re
from pathlib import Path

import jax
import numpy as np

from fewshot.adaptation import Task

FOLDER = Path(__file__).parents[1] / "golden" / "fewshot"

_PATHS = {
    r"layer_dict\.conv(\d)\.conv\.weight": r"conv\1/kernel",
    r"layer_dict\.conv(\d)\.norm_layer\.weight": r"norm\1/scale",
    r"layer_dict\.conv(\d)\.norm_layer\.bias": r"norm\1/shift",
    r"layer_dict\.conv(\d)\.norm_layer\.running_mean": r"norm\1/mean",
    r"layer_dict\.conv(\d)\.norm_layer\.running_var": r"norm\1/variance",
    r"layer_dict\.linear\.weights": "head/kernel",
    r"layer_dict\.linear\.bias": "head/bias",
    r"0\.weight": "hidden/kernel",
    r"0\.bias": "hidden/bias",
    r"2\.weight": "output/kernel",
    r"2\.bias": "output/bias",
}


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


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


def group(data: dict[str, np.ndarray], prefix: str, final_map: tuple[int, int] = (1, 1)) -> dict[str, np.ndarray]:
    """The arrays named `prefix` + official name, as {our path: array in our layout}; leading axes are kept."""
    arrays = {}
    for name, array in data.items():
        official = name.removeprefix(prefix)
        if official == name or not official.startswith(("layer_dict", "0.", "2.")):
            continue
        ours = path(official)
        if ours.startswith("conv") and array.ndim >= 4:
            array = np.moveaxis(array, (-2, -1), (-4, -3)).swapaxes(-1, -2)
        elif ours == "head/kernel" and array.ndim >= 2:
            array = flat_features(array, final_map).swapaxes(-1, -2)
        elif ours in ("hidden/kernel", "output/kernel"):
            array = array.swapaxes(-1, -2)
        arrays[ours] = array
    return arrays


def nested(flat: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    tree: dict[str, dict[str, np.ndarray]] = {}
    for ours, array in flat.items():
        layer, name = ours.split("/")
        tree.setdefault(layer, {})[name] = array
    return tree


def parameters(data: dict[str, np.ndarray]) -> dict:
    """Outer parameters of a trajectory file: "net", "rates" and, for CxGrad, "generator"."""
    net = group(data, "w/")
    rates = group(data, "inner_lr/")
    if not rates:
        adapted = [path(str(name)) for name in data["inner_param_names"]]
        rates = {ours: np.full(int(data["num_steps"]) + 1, data["inner_lr"]) for ours in adapted}
    params = {"net": nested(net), "rates": rates}
    return params | ({"generator": nested(group(data, "G/"))} if "G/0.weight" in data else {})


def tasks(data: dict[str, np.ndarray]) -> Task:
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


def errors(ours: dict[str, np.ndarray], official: dict[str, np.ndarray]) -> dict[str, float]:
    """`error` of each array of two dictionaries with the same paths."""
    assert ours.keys() == official.keys()
    return {name: error(ours[name], official[name]) for name in official}
