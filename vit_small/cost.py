"""Parameters and multiply-accumulates (MACs) by formula; `common.cost` counts them in the traced program.

MACs are those of linear maps, convolutions and products of batches of matrices, head mixing included; biases, norms and
softmax are not counted. The paper's "FLOPs" column is this number, in millions.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from vit_small.design import Design
from vit_small.models import T2T, CaiT, PiT, Swin, ViT
from vit_small.spt import DIRECTIONS


class Cost(NamedTuple):
    """What a layer costs, for one image."""

    parameters: int
    macs: int


class Image(NamedTuple):
    """A square image."""

    side: int
    channels: int = 3


def parameters(model: nn.Module, image: Image) -> int:
    """Trainable numbers of a model for such images, by formula."""
    return _total(model, image).parameters


def macs(model: nn.Module, image: Image) -> int:
    """Multiply-accumulates for one image, by formula."""
    return _total(model, image).macs


# --- formulas -------------------------------------------------------------------------------------------------------


def _total(model: nn.Module, image: Image) -> Cost:
    for kind, formula in _FORMULAS.items():
        if isinstance(model, kind):
            return _sum(formula(model, image))
    raise ValueError(f"{type(model).__name__} is none of {', '.join(kind.__name__ for kind in _FORMULAS)}.")


def _sum(costs: Iterable[Cost]) -> Cost:
    pairs = list(costs)
    return Cost(sum(cost.parameters for cost in pairs), sum(cost.macs for cost in pairs))


def _times(count: int, cost: Cost) -> Cost:
    return Cost(count * cost.parameters, count * cost.macs)


def _linear(tokens: int, width: int, out: int, bias: bool = True) -> Cost:
    return Cost(width * out + bias * out, tokens * width * out)


def _free(numbers: int) -> Cost:
    """Parameters that multiply nothing here: norms, positions, class tokens, temperatures, layer scales."""
    return Cost(numbers, 0)


def _views(design: Design) -> int:
    return 1 + len(DIRECTIONS[design.directions])


def _shifted(tokens: int, patch: int, channels: int, width: int, design: Design) -> Cost:
    features = _views(design) * patch**2 * channels
    return _sum((_free(2 * features), _linear(tokens, features, width)))


def _embedding(tokens: int, patch: int, channels: int, width: int, design: Design, norm: bool = False) -> Cost:
    if design.spt:
        return _shifted(tokens, patch, channels, width, design)
    return _sum((_linear(tokens, channels * patch**2, width), _free(2 * width * norm)))


def _temperature(heads: int, design: Design) -> Cost:
    per = heads if design.temperature_per == "head" else 1
    return _free(per if design.learned_temperature else 0)


def _mlp(tokens: int, width: int, hidden: int) -> Cost:
    return _sum((_linear(tokens, width, hidden), _linear(tokens, hidden, width)))


def _attention(
    tokens: int, width: int, heads: int, inner: int, out: int, design: Design, keys: int = 0, bias: bool = False
) -> Cost:
    """`keys`: tokens that each looks at, all by default."""
    return _sum(
        (
            _linear(tokens, width, 3 * inner, bias),
            Cost(0, 2 * tokens * (keys or tokens) * inner),
            _linear(tokens, inner, out),
            _temperature(heads, design),
        )
    )


def _block(tokens: int, width: int, heads: int, inner: int, hidden: int, design: Design) -> Cost:
    attention = _attention(tokens, width, heads, inner, width, design)
    return _sum((_free(4 * width), attention, _mlp(tokens, width, hidden)))


def _head(width: int, classes: int) -> Cost:
    return _sum((_free(2 * width), _linear(1, width, classes)))


def _vit(model: ViT, image: Image) -> Iterable[Cost]:
    patches = (image.side // model.patch) ** 2
    yield _embedding(patches, model.patch, image.channels, model.width, model.design)
    yield _free((patches + 2) * model.width)
    inner = model.heads * model.head_dim
    yield _times(model.depth, _block(patches + 1, model.width, model.heads, inner, model.hidden, model.design))
    yield _head(model.width, model.num_classes)


def _t2t(model: T2T, image: Image) -> Iterable[Cost]:
    grid, features = (image.side + 1) // 2, 9 * image.channels * (_views(model.design) if model.design.spt else 1)
    width = model.token_width
    for _ in range(1, model.soft_splits):
        yield _free(2 * features + 2 * width)
        yield _attention(grid**2, features, 1, width, width, model.design)
        yield _mlp(grid**2, width, width)
        grid, features = (grid + 1) // 2, 9 * width
    yield _linear(grid**2, features, model.width)
    yield _free(model.width)
    block = _block(grid**2 + 1, model.width, model.heads, model.width, model.hidden, model.design)
    yield _times(model.depth, block)
    yield _head(model.width, model.num_classes)


def _cait(model: CaiT, image: Image) -> Iterable[Cost]:
    patches, width, inner = (image.side // model.patch) ** 2, model.width, model.heads * model.head_dim
    yield _embedding(patches, model.patch, image.channels, width, model.design)
    yield _free((patches + 1) * width)

    def block(queries: int) -> Cost:
        mixing = Cost(2 * model.heads**2, 2 * model.heads**2 * queries * patches)
        return _sum(
            (
                _free(4 * width + 2 * width),  # norms and layer scales
                _linear(queries, width, inner, False),
                _linear(patches, width, 2 * inner, False),
                Cost(0, 2 * queries * patches * inner),
                mixing,
                _temperature(model.heads, model.design),
                _linear(queries, inner, width),
                _mlp(queries, width, model.hidden),
            )
        )

    yield _times(model.depth, block(patches))
    yield _times(model.class_depth, block(1))
    yield _head(width, model.num_classes)


def _pit(model: PiT, image: Image) -> Iterable[Cost]:
    grid, width, design = image.side // model.patch, model.width, model.design
    yield _embedding(grid**2, model.patch, image.channels, width, design)
    yield _free((grid**2 + 2) * width)
    for stage, (depth, heads) in enumerate(zip(model.depths, model.heads, strict=True)):
        if stage:
            yield _linear(1, width, 2 * width)  # class token
            if design.spt and design.spt_pool:
                grid //= 2
                yield _shifted(grid**2, 2, width, 2 * width, design)
            else:
                grid = (grid + 1) // 2
                yield Cost(2 * width * (9 + 1), grid**2 * 2 * width * 9)
                yield _linear(grid**2, 2 * width, 2 * width)
            width *= 2
        inner = heads * model.head_dim
        yield _times(depth, _block(grid**2 + 1, width, heads, inner, model.mlp_ratio * width, design))
    yield _head(width, model.num_classes)


def _swin(model: Swin, image: Image) -> Iterable[Cost]:
    grid, width, design = image.side // model.patch, model.width, model.design
    yield _embedding(grid**2, model.patch, image.channels, width, design, norm=True)
    yield _free(grid**2 * width)
    for stage, (depth, heads) in enumerate(zip(model.depths, model.heads, strict=True)):
        if stage:
            grid //= 2
            if design.spt and design.spt_pool:
                yield _shifted(grid**2, 2, width, 2 * width, design)
            else:
                yield _sum((_free(8 * width), _linear(grid**2, 4 * width, 2 * width, False)))
            width *= 2
        window = min(model.window, grid)
        attention = _attention(grid**2, width, heads, width, width, design, keys=window**2, bias=True)
        relative = _free((2 * window - 1) ** 2 * heads)
        block = _sum((_free(4 * width), attention, relative, _mlp(grid**2, width, model.mlp_ratio * width)))
        yield _times(depth, block)
    yield _head(width, model.num_classes)


_FORMULAS: Mapping[type, Callable[[Any, Image], Iterable[Cost]]] = {
    ViT: _vit,
    T2T: _t2t,
    CaiT: _cait,
    PiT: _pit,
    Swin: _swin,
}
