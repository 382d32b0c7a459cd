"""FT (Kim, Park and Kwak, "Paraphrasing Complex Network", 2018): factors of the teacher's last map.

A paraphraser learns on the teacher alone to compress its map into factors and to unfold them again; then a translator
on the student imitates the factors.
"""

import math
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import lax

from common.errors import UserError
from distill.method import Method, Variables
from distill.pairing import check_points, l2_normalize, same_size

STRIDES = (1, 2, 1)  # of the three convolutions; the transposed ones mirror them
_AXES = ("NHWC", "HWIO", "NHWC")


def make(weight: float, before_activation: bool, module_decay: float) -> Method:
    """weight · mean |F_T - F_S|, factors of unit length over channels, of the last sensing point.

    Args:
      weight: 500 in the toolbox.
      before_activation: the map before the ReLU, as the method means; the toolbox passes that after it.
      module_decay: times the sum of the paraphraser's squared kernels, added to its loss; 0.0005 in the toolbox.
    """

    def last(outputs):
        return (outputs.raw if before_activation else outputs.maps)[-1]

    def init_modules(key, knowledge):
        channels = knowledge.shape[-1]
        if channels < 8:
            raise UserError(
                f"the teacher's last sensing point has {channels} channels, but FT needs at least 8, to keep an eighth."
            )
        widths = (channels, channels // 2, channels // 4, channels // 8)
        back = {f"convt{i}": layer for i, layer in enumerate(_layers(jax.random.fold_in(key, 1), widths[::-1]))}
        return Variables(_encoder(key, widths) | back, {})

    def module_loss(modules, knowledge, key):
        reconstruction = jnp.abs(knowledge - unfold(modules.params, factors(modules.params, knowledge))).mean()
        squares = sum(jnp.sum(layer["kernel"] ** 2) for layer in modules.params.values())
        return reconstruction + module_decay * squares, modules.state, {"reconstruction": reconstruction}

    def init_adapters(key, student, knowledge):
        check_points((last(student),), (knowledge,))
        channels = knowledge.shape[-1]
        widths = (last(student).shape[-1], channels // 2, channels // 4, channels // 8)
        return Variables(_encoder(key, widths), {})

    def loss(modules, adapters, student, knowledge, labels):
        of_teacher, of_student = factors(modules.params, knowledge), factors(adapters.params, last(student))
        of_student, of_teacher = same_size(of_student, of_teacher)
        difference = l2_normalize(of_teacher) - l2_normalize(of_student)
        return {"factors": weight * jnp.abs(difference).mean()}, adapters.state

    return Method(loss, knowledge=last, init_modules=init_modules, init_adapters=init_adapters, module_loss=module_loss)


def factors(params, x):
    """Three convolutions to an eighth of the channels and half the size, LeakyReLU between them; factors are linear."""
    for i, stride in enumerate(STRIDES):
        layer = params[f"conv{i}"]
        x = lax.conv_general_dilated(x, layer["kernel"], (stride, stride), "SAME", dimension_numbers=_AXES)
        x = x + jnp.expand_dims(layer["bias"], (0, 1, 2))
        x = jax.nn.leaky_relu(x, 0.2) if i < 2 else x
    return x


def unfold(params, x):
    """Three transposed convolutions back to the map; LeakyReLU on the factors and behind each (official code)."""
    x = jax.nn.leaky_relu(x, 0.2)
    for i, stride in enumerate(STRIDES[::-1]):
        layer = params[f"convt{i}"]
        x = lax.conv_transpose(x, layer["kernel"], (stride, stride), "SAME", dimension_numbers=_AXES)
        x = jax.nn.leaky_relu(x + jnp.expand_dims(layer["bias"], (0, 1, 2)), 0.2)
    return x


def _encoder(key, widths):
    return {f"conv{i}": layer for i, layer in enumerate(_layers(key, widths))}


def _layers(key, widths):
    for i, (before, after) in enumerate(pairwise(widths)):
        kernel = jax.random.normal(jax.random.fold_in(key, i), (3, 3, before, after)) * math.sqrt(2 / (9 * before))
        yield {"kernel": kernel, "bias": jnp.zeros(after)}
