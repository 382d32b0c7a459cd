"""Parameters and multiply-accumulates (MACs), counted: in a tree of arrays, and in the traced program of a function."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def count_parameters(params: Any) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def count_macs(function: Callable[..., Any], *arguments: Any) -> int:
    """Multiply-accumulates of the matrix products and convolutions in the traced program of `function`."""
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr: Jaxpr) -> int:
    total: int = 0
    for equation in jaxpr.eqns:
        kind = equation.primitive.name
        variables = (*equation.outvars[:1], *equation.invars[:2])
        shapes: list[tuple[int, ...]] = [getattr(variable.aval, "shape", ()) for variable in variables]
        if kind == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(shapes[1][axis] for axis in contracted)
            total += math.prod(shapes[0]) * depth
        elif kind == "conv_general_dilated":
            kernel, layout = shapes[2], equation.params["dimension_numbers"].rhs_spec
            total += math.prod(shapes[0]) * math.prod(kernel) // kernel[layout[0]]
        inner = sum(_of_jaxpr(part) for part in _inner(equation.params.values()))
        total += inner * (equation.params["length"] if kind == "scan" else 1)
    return total


def _inner(values: Iterable[Any]) -> Iterable[Jaxpr]:
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _inner(value)
