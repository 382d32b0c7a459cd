"""VID (Ahn et al., "Variational Information Distillation", 2019): how well the student's map predicts the teacher's."""

import math
from itertools import pairwise

import jax
import jax.numpy as jnp

from distill.method import Method, Variables
from distill.pairing import batch_norm, check_points, same_size


def make(weight: float) -> Method:
    """weight Σ over points mean ½ (log v + (t - h(s))² / v), v = softplus(alpha) + 1 for each channel.

    h: three maps of single positions to 2 C, 2 C and C channels with BatchNorm, ReLU behind the first two.

    Args:
      weight: 1; the toolbox lists 0.1 and never applies it.
    """

    def init_adapters(key, student, knowledge):
        check_points(student.maps, knowledge)
        params = {}
        for i, (s, t) in enumerate(zip(student.maps, knowledge, strict=True)):
            channels = t.shape[-1]
            widths = (s.shape[-1], 2 * channels, 2 * channels, channels)
            params[f"point{i}"] = {"alpha": jnp.full(channels, 5.0)}
            for j, shape in enumerate(pairwise(widths)):
                key, own = jax.random.split(key)
                params[f"point{i}"][f"layer{j}"] = {
                    "kernel": jax.random.normal(own, shape) * math.sqrt(2 / shape[0]),
                    "gamma": jnp.ones(shape[1]),
                    "beta": jnp.zeros(shape[1]),
                }
        return Variables(params, {})

    def loss(modules, adapters, student, knowledge, labels):
        total = jnp.zeros(())
        for i, (s, t) in enumerate(zip(student.maps, knowledge, strict=True)):
            total += point_loss(adapters.params[f"point{i}"], *same_size(s, t))
        return {"information": weight * total}, adapters.state

    return Method(loss, knowledge=lambda teacher: teacher.maps, init_adapters=init_adapters)


def point_loss(params, student, teacher):
    """Loss of one point, maps [B, h, w, c] and [B, h, w, d] of one size."""
    h = student
    for j in range(3):
        layer = params[f"layer{j}"]
        h = batch_norm(h @ layer["kernel"], layer["gamma"], layer["beta"])
        h = jax.nn.relu(h) if j < 2 else h
    variance = jnp.expand_dims(jax.nn.softplus(params["alpha"]) + 1, (0, 1, 2))
    return ((jnp.log(variance) + (teacher - h) ** 2 / variance) / 2).mean()
