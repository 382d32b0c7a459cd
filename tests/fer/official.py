"""The official implementation's numbers: golden arrays, formula weights, and our trees from PyTorch's names."""

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from tests import golden_files

# Compiled with little optimisation: these tests compile more than they compute.
jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


golden = functools.partial(golden_files.load, "fer")


def official_name(path: tuple[str, ...]) -> str:
    """PyTorch's name of one of our parameters or statistics: ("bn1", "scale") -> "bn1.weight"."""
    leaf = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}.get(path[-1], path[-1])
    parts = []
    for part in path[:-1]:
        head, _, number = part.rpartition("_")  # layer1_0 -> layer1.0, features_3 -> features.3
        parts.append(f"{head}.{number}" if head and number.isdigit() else part)
    return ".".join([*parts, leaf]).replace("fc.", "last_linear.")


def ours(array: np.ndarray, path: tuple[str, ...]) -> np.ndarray:
    """An official array in our layout."""
    if path[-1] == "kernel":
        return array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)
    return array


def official_shape(shape: tuple[int, ...], path: tuple[str, ...]) -> tuple[int, ...]:
    if path[-1] == "kernel":
        return shape[::-1] if len(shape) == 2 else (shape[3], shape[2], shape[0], shape[1])
    return shape


def load(template: Any, read) -> Any:
    """A tree like `template` (of arrays or shapes), each leaf from `read(official name, official shape)`."""
    flat = {}
    for path, leaf in flatten_dict(template).items():
        array = read(official_name(path), official_shape(leaf.shape, path))
        flat[path] = jnp.asarray(ours(array, path), leaf.dtype)
        assert flat[path].shape == leaf.shape, path
    return unflatten_dict(flat)


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers that belong to a name."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)


def formula(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The formula weight of one official tensor, from the name with which its seed is made."""
    values = noise(name, shape)
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(values)
    if name.endswith("running_mean"):
        return 0.1 * values
    if len(shape) >= 2:
        return values * np.sqrt(2 / np.prod(shape[1:]))
    return 1 + 0.1 * values if name.endswith("weight") else 0.05 * values


def relative(value, reference) -> float:
    """Largest difference over the largest reference."""
    value, reference = np.asarray(value, np.float64), np.asarray(reference, np.float64)
    assert value.shape == reference.shape, (value.shape, reference.shape)
    return float(np.max(np.abs(value - reference)) / max(np.max(np.abs(reference)), 1e-30))
