"""AT (Zagoruyko and Komodakis, "Paying More Attention to Attention", 2017): where the maps are strong."""

import jax.numpy as jnp

from distill.method import Method, no_adapters
from distill.pairing import check_points, l2_normalize, same_size


def make(beta: float) -> Method:
    """Σ over points beta / 2 · mean (q_S - q_T)², q the channels' mean square, of unit length over positions.

    Args:
      beta: 1000 in the toolbox.
    """

    def init_adapters(key, student, knowledge):
        check_points(student.maps, knowledge)
        return no_adapters(key, student, knowledge)

    def loss(modules, adapters, student, knowledge, labels):
        total = jnp.zeros(())
        for s, t in zip(student.maps, knowledge, strict=True):
            s, t = same_size((s * s).mean(-1, keepdims=True), t)
            total += beta / 2 * ((l2_normalize(s, (1, 2)) - l2_normalize(t, (1, 2))) ** 2).mean()
        return {"attention": total}, adapters.state

    def knowledge(teacher):
        return tuple((fm * fm).mean(-1, keepdims=True) for fm in teacher.maps)

    return Method(loss, knowledge=knowledge, init_adapters=init_adapters)
