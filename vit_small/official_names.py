"""Names and layouts of the official PyTorch weights, in both directions.

Official linear kernels are [out, in] and convolutions [out, in, kh, kw]; ours are [in, out] and channels last, and a
stack of layers is one array with the layer in front.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from common import pretrained
from vit_small.design import Design
from vit_small.models import T2T, CaiT, PiT, Swin, ViT
from vit_small.models.t2t import sinusoid

Path = tuple[str, ...]


class Entry(NamedTuple):
    """One official tensor, and where in our parameters it belongs."""

    official: str
    path: Path
    index: tuple[int, ...] = ()  # into the stacked array, () where there is no stack
    layout: str = "same"


def entries(model: nn.Module) -> list[Entry]:
    """All trainable tensors of a model; raises ValueError for a module that is none of the five."""
    for kind, names in _TABLES.items():
        if isinstance(model, kind):
            return list(names(model))
    raise ValueError(f"{type(model).__name__} is none of {', '.join(kind.__name__ for kind in _TABLES)}.")


def unused(model: nn.Module, positions: int = 65) -> dict[str, np.ndarray]:
    """Official tensors without a counterpart here: T2T's fixed positions and a LayerNorm that it never uses.

    The values are those of a fresh official module; `positions` is the number of tokens, with the class token.
    """
    if not isinstance(model, T2T):
        return {}
    features = 9 * model.token_width
    return {
        "pos_embed": sinusoid(positions, model.width)[None].astype(np.float32),
        "tokens_to_token.norm.weight": np.ones(features, np.float32),
        "tokens_to_token.norm.bias": np.zeros(features, np.float32),
    }


def from_official(
    model: nn.Module, official: Mapping[str, np.ndarray], like: Mapping[str, Any], where: str = "the weights"
) -> dict[str, Any]:
    """Our parameters from official tensors.

    `like` has their shapes and types, as `jax.eval_shape` of `model.init` gives them. Raises UserError on names that
    are missing or left over, and on other shapes.
    """
    table = entries(model)
    leaves: Any = flatten_dict(dict(like))
    rows, template = [], {}
    for entry in table:
        leaf, place = leaves[entry.path], "/".join((*entry.path, ",".join(map(str, entry.index))))
        template[place] = np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape[len(entry.index) :])
        rows.append(pretrained.Entry(entry.official, place, _LAYOUTS[entry.layout][0]))
    ignore = tuple(unused(model))
    matched = pretrained.match(official, rows, unflatten_dict(template, sep="/"), ignore, where)
    placed: Any = flatten_dict(matched.tree, sep="/")
    parts: dict[Path, dict[tuple[int, ...], np.ndarray]] = {}
    for entry, row in zip(table, rows, strict=True):
        parts.setdefault(entry.path, {})[entry.index] = placed[row.target]
    return unflatten_dict({path: _stacked(indexed) for path, indexed in parts.items()})


def to_official(model: nn.Module, params: Mapping[str, Any], positions: int = 65) -> dict[str, np.ndarray]:
    """Official tensors from our parameters; `positions`: tokens of the backbone, for T2T's fixed table."""
    patch = getattr(model, "patch", 0)
    tensors = {}
    for entry in entries(model):
        leaf: Any = params
        for name in entry.path:
            leaf = leaf[name]
        array = np.asarray(leaf)[entry.index]
        tensors[entry.official] = np.ascontiguousarray(_LAYOUTS[entry.layout][1](array, entry.official, patch))
    return tensors | unused(model, positions)


def _stacked(leaves: Mapping[tuple[int, ...], np.ndarray]) -> np.ndarray:
    indices = sorted(leaves)
    if indices == [()]:
        return leaves[()]
    shape = tuple(size + 1 for size in indices[-1])
    return np.stack([leaves[index] for index in indices]).reshape(*shape, *leaves[indices[0]].shape)


# --- layouts: (from official, to official) --------------------------------------------------------------------------


def _from_patches(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])


def _to_patches(kernel: np.ndarray, name: str, patch: int) -> np.ndarray:
    return kernel.reshape(patch, patch, -1, kernel.shape[-1]).transpose(3, 2, 0, 1)


def _from_depthwise(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(2, 3, 1, 0)


def _to_token(array: np.ndarray, name: str, patch: int) -> np.ndarray:
    return array[None] if array.ndim == 2 else array[None, None]


_LAYOUTS: dict[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    "same": (lambda array: array, lambda array, *_: array),
    "linear": (np.transpose, lambda kernel, *_: kernel.T),
    "token": (lambda array: array[0] if array.shape[1] > 1 else array[0, 0], _to_token),
    "patches": (_from_patches, _to_patches),
    "pointwise": (lambda kernel: kernel[:, :, 0, 0].T, lambda kernel, *_: kernel.T[:, :, None, None]),
    "depthwise": (_from_depthwise, lambda kernel, *_: kernel.transpose(3, 2, 0, 1)),
}


# --- names ----------------------------------------------------------------------------------------------------------


def _norm(official: str, path: Path, index: tuple[int, ...] = ()) -> Iterator[Entry]:
    yield Entry(f"{official}.weight", (*path, "scale"), index)
    yield Entry(f"{official}.bias", (*path, "bias"), index)


def _linear(
    official: str, path: Path, index: tuple[int, ...] = (), bias: bool = True, layout: str = "linear"
) -> Iterator[Entry]:
    yield Entry(f"{official}.weight", (*path, "kernel"), index, layout)
    if bias:
        yield Entry(f"{official}.bias", (*path, "bias"), index)


def _shifted(official: str, path: Path) -> Iterator[Entry]:
    yield Entry(f"{official}.merging.1.weight", (*path, "shifted", "norm_scale"))
    yield Entry(f"{official}.merging.1.bias", (*path, "shifted", "norm_bias"))
    yield from _linear(f"{official}.merging.2", (*path, "shifted"))


def _temperature(official: str, path: Path, index: tuple[int, ...], design: Design) -> Iterator[Entry]:
    if design.learned_temperature:
        yield Entry(f"{official}.scale", (*path, "attention", "inverse_temperature"), index)


def _tokens(position: str = "pos_embedding") -> Iterator[Entry]:
    yield Entry(position, ("position",), (), "token")
    yield Entry("cls_token", ("class_token",), (), "token")


def _prenorm_block(official: str, path: Path, index: tuple[int, ...], design: Design) -> Iterator[Entry]:
    yield from _norm(f"{official}.0.norm", (*path, "norm1"), index)
    yield from _temperature(f"{official}.0.fn", path, index, design)
    yield from _linear(f"{official}.0.fn.to_qkv", (*path, "attention", "qkv"), index, bias=False)
    yield from _linear(f"{official}.0.fn.to_out.0", (*path, "attention", "out"), index)
    yield from _norm(f"{official}.1.norm", (*path, "norm2"), index)
    yield from _linear(f"{official}.1.fn.net.0", (*path, "mlp", "up"), index)
    yield from _linear(f"{official}.1.fn.net.3", (*path, "mlp", "down"), index)


def _head() -> Iterator[Entry]:
    yield from _norm("mlp_head.0", ("norm",))
    yield from _linear("mlp_head.1", ("head",))


def _vit(model: ViT) -> Iterator[Entry]:
    yield from _tokens()
    if model.design.spt:
        yield from _shifted("to_patch_embedding", ("embedding",))
    else:
        yield from _linear("to_patch_embedding.1", ("embedding", "projection"))
    for i in range(model.depth):
        yield from _prenorm_block(f"transformer.layers.{i}", ("blocks",), (i,), model.design)
    yield from _head()


def _pit(model: PiT) -> Iterator[Entry]:
    yield from _tokens()
    if model.design.spt:
        yield from _shifted("to_patch_embedding", ("embedding",))
    else:
        yield from _linear("to_patch_embedding.0", ("embedding", "projection"), layout="patches")
    for stage, depth in enumerate(model.depths):
        if stage:
            official, path = f"layers.{2 * stage - 1}", (f"pool{stage}",)
            if model.design.spt and model.design.spt_pool:
                yield from _linear(f"{official}.class_linear", (f"class{stage}",))
                yield from _shifted(official, path)
            else:
                yield from _linear(f"{official}.downsample.net.0", path, layout="depthwise")
                yield from _linear(f"{official}.downsample.net.1", (*path, "pointwise"), layout="pointwise")
                yield from _linear(f"{official}.cls_ff", (f"class{stage}",))
        for i in range(depth):
            yield from _prenorm_block(f"layers.{2 * stage}.layers.{i}", (f"stage{stage}",), (i,), model.design)
    yield from _head()


def _cait(model: CaiT) -> Iterator[Entry]:
    yield from _tokens()
    if model.design.spt:
        yield from _shifted("to_patch_embedding.0", ("embedding",))
    else:
        yield from _linear("to_patch_embedding.1", ("embedding", "projection"))
    stacks = (("patch", "patch_blocks", model.depth), ("cls", "class_blocks", model.class_depth))
    for kind, stack, depth in stacks:
        for i in range(depth):
            official, path, index = f"{kind}_transformer.layers.{i}", (stack,), (i,)
            attention = (stack, "attention")
            yield Entry(f"{official}.0.scale", (f"{stack}_scale",), (i, 0), "token")
            yield from _norm(f"{official}.0.fn.norm", (*path, "norm1"), index)
            yield Entry(f"{official}.0.fn.fn.mix_heads_pre_attn", (*attention, "mix_before"), index)
            yield Entry(f"{official}.0.fn.fn.mix_heads_post_attn", (*attention, "mix_after"), index)
            yield from _temperature(f"{official}.0.fn.fn", path, index, model.design)
            yield from _linear(f"{official}.0.fn.fn.to_q", (*attention, "q"), index, bias=False)
            yield from _linear(f"{official}.0.fn.fn.to_kv", (*attention, "kv"), index, bias=False)
            yield from _linear(f"{official}.0.fn.fn.to_out.0", (*attention, "out"), index)
            yield Entry(f"{official}.1.scale", (f"{stack}_scale",), (i, 1), "token")
            yield from _norm(f"{official}.1.fn.norm", (*path, "norm2"), index)
            yield from _linear(f"{official}.1.fn.fn.net.0", (*path, "mlp", "up"), index)
            yield from _linear(f"{official}.1.fn.fn.net.3", (*path, "mlp", "down"), index)
    yield from _head()


def _timm_block(
    official: str, path: Path, index: tuple[int, ...], design: Design, qkv_bias: bool, relative: bool
) -> Iterator[Entry]:
    yield from _norm(f"{official}.norm1", (*path, "norm1"), index)
    yield from _temperature(f"{official}.attn", path, index, design)
    if relative:
        yield Entry(f"{official}.attn.relative_position_bias_table", (*path, "relative_bias"), index)
    yield from _linear(f"{official}.attn.qkv", (*path, "attention", "qkv"), index, bias=qkv_bias)
    yield from _linear(f"{official}.attn.proj", (*path, "attention", "out"), index)
    yield from _norm(f"{official}.norm2", (*path, "norm2"), index)
    yield from _linear(f"{official}.mlp.fc1", (*path, "mlp", "up"), index)
    yield from _linear(f"{official}.mlp.fc2", (*path, "mlp", "down"), index)


def _t2t(model: T2T) -> Iterator[Entry]:
    yield Entry("cls_token", ("class_token",), (), "token")
    for i in range(1, model.soft_splits):
        yield from _timm_block(f"tokens_to_token.attention{i}", (f"tokens{i}",), (), model.design, False, False)
    yield from _linear("tokens_to_token.project", ("projection",))
    for i in range(model.depth):
        yield from _timm_block(f"blocks.{i}", ("blocks",), (i,), model.design, False, False)
    yield from _norm("norm", ("norm",))
    yield from _linear("head", ("head",))


def _swin(model: Swin) -> Iterator[Entry]:
    yield Entry("absolute_pos_embed", ("position",), (), "token")
    if model.design.spt:
        yield from _shifted("patch_embed", ("embedding",))
    else:
        yield from _linear("patch_embed.proj", ("embedding", "projection"), layout="patches")
        yield from _norm("patch_embed.norm", ("embedding", "norm"))
    for stage, depth in enumerate(model.depths):
        if stage:
            official, path = f"layers.{stage - 1}.downsample", (f"pool{stage}",)
            if model.design.spt and model.design.spt_pool:
                yield from _shifted(official, path)
            else:
                yield from _linear(f"{official}.reduction", (*path, "reduction"), bias=False)
                yield from _norm(f"{official}.norm", (*path, "norm"))
        for i in range(depth):
            alone = i == depth - 1 and depth % 2
            path = (f"stage{stage}_last",) if alone else (f"stage{stage}", ("even", "odd")[i % 2])
            index = () if alone else (i // 2,)
            yield from _timm_block(f"layers.{stage}.blocks.{i}", path, index, model.design, True, True)
    yield from _norm("norm", ("norm",))
    yield from _linear("head", ("head",))


_TABLES: dict[type, Callable[[Any], Iterator[Entry]]] = {ViT: _vit, T2T: _t2t, CaiT: _cait, PiT: _pit, Swin: _swin}
