"""Students with other numbers of channels than the teacher: a 1 x 1 convolution with BatchNorm at each such point.

The papers compare networks of equal widths; the authors' later port has this for KD-SVD. Trained with the student.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill.method import PyTree, Variables
from distill.modules import init_dense, init_norm
from distill.pairing import batch_norm


def init_channel_adapters(key: Array, maps: tuple[PyTree, ...], channels: list[int]) -> Variables:
    """Adapters of the points whose maps `[B, H, W, C]` have another C than `channels` says; there may be none."""
    params = {}
    for i, (x, wanted) in enumerate(zip(maps, channels, strict=True)):
        if x.shape[-1] != wanted:
            layer = init_dense(jax.random.fold_in(key, i), x.shape[-1], wanted)
            params[f"point{i}"] = {"convolution": layer, "norm": init_norm(wanted)[0]}
    return Variables(params, {})


def adapt(adapters: Variables, maps: tuple[Float[Array, "B _ _ _"], ...]) -> list[Float[Array, "B _ _ _"]]:
    """The maps with the teacher's numbers of channels; BatchNorm uses the batch's own statistics."""
    adapted = list(maps)
    for i, x in enumerate(maps):
        if f"point{i}" in adapters.params:
            layer = adapters.params[f"point{i}"]
            y = jnp.matmul(x, layer["convolution"]["kernel"])
            adapted[i] = batch_norm(y, layer["norm"]["scale"], layer["norm"]["bias"])
    return adapted
