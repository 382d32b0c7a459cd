"""Random keys that depend on (seed, stream name, step) alone, so that no key is carried in a loop or saved."""

import zlib

import jax
from jaxtyping import Array, Int


def stream(seed: int | Int[Array, ""], name: str, step: int | Int[Array, ""] = 0) -> Array:
    """The key of stream `name` ("batch", "step", "init", ...) at `step`; traceable in `seed` and `step`."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode())), step)
