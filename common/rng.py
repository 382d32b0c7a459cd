"""Random keys that depend on (seed, stream name, step) alone, so that no key is carried in a loop or saved."""

import zlib

import jax
from jaxtyping import Array, Integer


def stream(seed: int | Integer[Array, ""], name: str, step: int | Integer[Array, ""] = 0) -> Array:
    """The key of stream `name` ("batch", "step", "init", ...) at `step`; traceable in `seed` and `step`."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode())), step)
