"""FitNet (Romero et al., "FitNets: Hints for Thin Deep Nets", 2015): the student's maps imitate the teacher's."""

import math

import jax
import jax.numpy as jnp

from distill.method import Method, Variables
from distill.pairing import check_points, same_size


def make() -> Method:
    """Σ over points mean (f_S - f_T W)²; W, without a bias, leads from the teacher's width to the student's where they
    differ."""

    def init_adapters(key, student, knowledge):
        check_points(student.maps, knowledge)
        params = {}
        for i, (s, t) in enumerate(zip(student.maps, knowledge, strict=True)):
            if s.shape[-1] != t.shape[-1]:
                shape = (t.shape[-1], s.shape[-1])
                params[f"map{i}"] = jax.random.normal(jax.random.fold_in(key, i), shape) / math.sqrt(shape[0])
        return Variables(params, {})

    def loss(modules, adapters, student, knowledge, labels):
        total = jnp.zeros(())
        for i, (s, t) in enumerate(zip(student.maps, knowledge, strict=True)):
            s, t = same_size(s, t)
            t = t @ adapters.params[f"map{i}"] if f"map{i}" in adapters.params else t
            total += ((s - t) ** 2).mean()
        return {"hints": total}, adapters.state

    return Method(loss, knowledge=lambda teacher: teacher.maps, init_adapters=init_adapters)
