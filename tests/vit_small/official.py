"""The official implementation's numbers: formula weights, inputs and models as the golden files define them."""

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests import golden_files
from vit_small.design import Design
from vit_small.models import T2T, CaiT, PiT, Swin, ViT
from vit_small.models.t2t import sinusoid
from vit_small.official_names import from_official

CASES = [(spt, lsa) for spt in (0, 1) for lsa in (0, 1)]
# Compiled with little optimisation: these tests compile more than they compute.
jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
NAMES = ("vit", "t2t", "cait", "pit", "swin")


golden = functools.partial(golden_files.load, "vit_small")


def z(name: str, *shape: int) -> np.ndarray:
    """Standard normal numbers that belong to a name."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)


def images(name: str, *shape: int) -> np.ndarray:
    """A formula batch, channels last."""
    return z(name, *shape).transpose(0, 2, 3, 1)


def weight(name: str, shape: tuple[int, ...], kind: str, temperature: float) -> np.ndarray:
    """The formula weight of one official tensor."""
    noise = z(name, *shape)
    match kind:
        case "matrix":
            return noise / np.sqrt(np.prod(shape[1:]))
        case "norm_scale":
            return 1 + 0.1 * noise
        case "bias":
            return 0.1 * noise
        case "embed" | "rel_bias":
            return 0.5 * noise
        case "temperature":
            return temperature * (1 + 0.2 * noise)
        case "layer_scale":
            return 0.5 + 0.1 * noise
        case "mix_heads":
            return np.eye(shape[0]) + 0.3 * noise
        case "frozen":
            return sinusoid(shape[1], shape[2])[None]
    raise ValueError(kind)


def table(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, tuple[tuple[int, ...], str, float]]:
    """{official name: (shape, kind, first temperature)} in the order of the file."""
    columns = (arrays[f"{prefix}{column}"] for column in ("names", "shapes", "kinds", "temperature_init"))
    return {
        str(name): (tuple(int(size) for size in shape if size), str(kind), float(first))
        for name, shape, kind, first in zip(*columns, strict=True)
    }


def positions(arrays: Mapping[str, np.ndarray], prefix: str) -> int:
    """Tokens of T2T's fixed positions, 0 for other models."""
    shape, _, _ = table(arrays, prefix).get("pos_embed", ((0, 0), "", 0.0))
    return shape[1]


def weights(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """All formula weights of a table, by official name."""
    return {name: weight(name, *row) for name, row in table(arrays, prefix).items()}


def design(spt: int, lsa: int, **fields: Any) -> Design:
    return Design(spt=bool(spt), learned_temperature=bool(lsa), mask_diagonal=bool(lsa), **fields)


def tiny(name: str, chosen: Design) -> Any:
    """The models of models_tiny.npz: 16 x 16 pixels, 5 classes."""
    match name:
        case "vit":
            return ViT(5, 4, 24, 2, 3, 8, 48, chosen)
        case "cait":
            return CaiT(5, 4, 24, 3, 2, 2, 8, 40, design=chosen)
        case "pit":
            return PiT(5, 2, 16, (1, 2, 1), (2, 4, 8), 8, design=chosen)
        case "t2t":
            return T2T(5, 2, 8, 32, 2, 2, 64, design=chosen)
        case "swin":
            return Swin(5, 2, 12, (2, 2, 1), (3, 6, 12), design=chosen)
    raise ValueError(name)


def paper(name: str, side: int, chosen: Design) -> Any:
    """The models of models_paper_size.npz: 32 or 64 pixels, 100 or 200 classes."""
    small = side == 32
    classes = 100 if small else 200
    match name:
        case "vit":
            return ViT(classes, 4 if small else 8, design=chosen)
        case "cait":
            return CaiT(classes, 4 if small else 8, design=chosen)
        case "pit":
            return PiT(classes, 2 if small else 4, design=chosen)
        case "t2t":
            return T2T(classes, 2 if small else 3, design=chosen)
        case "swin":
            return Swin(classes, 2 if small else 4, design=chosen)
    raise ValueError(name)


def like(model: Any, side: int) -> Any:
    """Shapes of a model's parameters, in 64 bit."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float64), shapes)


def params(model: Any, arrays: Mapping[str, np.ndarray], prefix: str, side: int = 16) -> dict[str, Any]:
    """Formula weights as this package's parameters."""
    return from_official(model, weights(arrays, prefix), like(model, side))


def with_taps(model: Any) -> Any:
    """The same model, telling what its blocks see."""
    return model.clone(design=dataclasses.replace(model.design, taps=True))
