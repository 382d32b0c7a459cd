"""AB (Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries", 2019): which neurons are active."""

import math

import jax
import jax.numpy as jnp

from distill.method import Method, Variables
from distill.pairing import batch_norm, check_points, same_size


def make(weight: float, before_activation: bool) -> Method:
    """weight Σ_i 2^i, batch mean of Σ (z + 1)² where the teacher is inactive and z > -1, (z - 1)² where it is active
    and z <= 1; z = BatchNorm(1 x 1 convolution of the student's map).

    Args:
      weight: 0.003 in the toolbox.
      before_activation: maps before the ReLU, as the method means; the toolbox passes those after it.
    """

    def points(outputs):
        return outputs.raw if before_activation else outputs.maps

    def init_adapters(key, student, knowledge):
        check_points(points(student), knowledge)
        params = {}
        for i, (s, t) in enumerate(zip(points(student), knowledge, strict=True)):
            shape = (s.shape[-1], t.shape[-1])
            params[f"connector{i}"] = {
                "kernel": jax.random.normal(jax.random.fold_in(key, i), shape) * math.sqrt(2 / shape[0]),
                "gamma": jnp.ones(shape[1]),
                "beta": jnp.zeros(shape[1]),
            }
        return Variables(params, {})

    def loss(modules, adapters, student, knowledge, labels):
        total = jnp.zeros(())
        for i, (s, t) in enumerate(zip(points(student), knowledge, strict=True)):
            connector = adapters.params[f"connector{i}"]
            s, t = same_size(s, t)
            z = batch_norm(s @ connector["kernel"], connector["gamma"], connector["beta"])
            wrongly_active = (z + 1) ** 2 * ((z > -1) & (t <= 0))
            wrongly_quiet = (z - 1) ** 2 * ((z <= 1) & (t > 0))
            total += weight * 2**i * (wrongly_active + wrongly_quiet).sum((1, 2, 3)).mean()
        return {"boundaries": total}, adapters.state

    return Method(loss, knowledge=points, init_adapters=init_adapters)
