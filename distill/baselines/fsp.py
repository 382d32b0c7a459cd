"""FSP (Yim et al., "A Gift from Knowledge Distillation", 2017): Gram matrices between consecutive points."""

from itertools import pairwise

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from common.errors import UserError
from distill.method import Method, no_adapters


def make(weight: float) -> Method:
    """weight Σ over pairs, batch mean of ½ Σ (G_S - G_T)².

    Args:
      weight: 0.001 in the toolbox.
    """

    def init_adapters(key, student, knowledge):
        widths = tuple(fm.shape[-1] for fm in student.maps)
        ours = tuple(pairwise(widths))
        theirs = tuple(flow.shape[1:] for flow in knowledge)
        if ours != theirs or not ours:
            raise UserError(
                f"FSP compares Gram matrices of consecutive sensing points: the student's have the shapes {ours}, the "
                f"teacher's {theirs}, but must be the same and at least one; choose other networks, widths or taps."
            )
        return no_adapters(key, student, knowledge)

    def loss(modules, adapters, student, knowledge, labels):
        total = jnp.zeros(())
        for s, t in zip(flows(student.maps), knowledge, strict=True):
            total += weight * (0.5 * (s - t) ** 2).sum((1, 2)).mean()
        return {"flow": total}, adapters.state

    return Method(loss, knowledge=lambda teacher: flows(teacher.maps), init_adapters=init_adapters)


def flows(maps: tuple[Array, ...]) -> tuple[Float[Array, "B c d"], ...]:
    """Fᵀ B / HW of each two consecutive points, the front map max-pooled to the size of the back one."""
    found = []
    for front, back in pairwise(maps):
        while front.shape[1] > back.shape[1]:
            front = nn.max_pool(front, (2, 2), (2, 2))
        positions = back.shape[1] * back.shape[2]
        found.append(jnp.einsum("bhwc,bhwd->bcd", front, back) / positions)
    return tuple(found)
