"""The golden files of the official implementation, and the arrays that both sides make from a formula."""

import zlib
from functools import partial

import jax.numpy as jnp
import numpy as np

from tests import golden_files

load = partial(golden_files.load, "anomaly")


def formula(prefix, name, shape):
    """Standard normal numbers that depend on the two names alone."""
    return np.random.default_rng(zlib.crc32(f"{prefix}/{name}".encode())).standard_normal(shape)


def descriptor_params(prefix, width, fan_in):
    """Kernel and bias of the descriptor as the golden files have them; the kernel's layout is ours, [in, out]."""
    weight = (formula(prefix, "layer.conv.weight", (width, fan_in, 1, 1)) * np.sqrt(2 / fan_in)).astype(np.float32)
    bias = (0.1 * formula(prefix, "layer.conv.bias", (width,))).astype(np.float32)
    return {"kernel": jnp.asarray((weight * np.float32(0.5))[:, :, 0, 0].T), "bias": jnp.asarray(bias)}


def nhwc(array):
    """[..., C, H, W] to [..., H, W, C]."""
    return np.moveaxis(array, -3, -1)
