"""The operations of AutoAugment on a batch in which every image has its own: warp, tone table, colour or sharpness.

`lax.switch` under `vmap` computes all fourteen operations for every image. Here the five that move pixels are one warp
and the seven that map grey levels one table, so four results are computed and one is chosen.
"""

import jax.numpy as jnp
from jaxtyping import Array, Int, UInt8

from vit_small.augmentation.geometry import warp
from vit_small.augmentation.policies import INDEX
from vit_small.augmentation.tone import TONES, blend, luma, remap


def apply_operations(
    images: UInt8[Array, "B h w c"], operation: Int[Array, " B"], level: Int[Array, " B"], sign: Int[Array, " B"]
) -> UInt8[Array, "B h w c"]:
    """Each image after its operation.

    Equal to Pillow's but for one grey level in few pixels, where Pillow's float arithmetic falls just below a whole
    number. Integers throughout, so equal on every backend.

    Args:
      images: grey (c = 1) or RGB (c = 3).
      operation: index into `policies.OPERATIONS`.
      level: 0..9, see `policies.MAGNITUDES`.
      sign: 1 or -1: direction of shears, translations and rotations, and whether color, contrast, sharpness and
        brightness gain or lose. The official code always rotates by 1, counter-clockwise.
    """
    wide = images.astype(jnp.int32)
    tenths = (10 + sign * level)[:, None, None, None]

    def chosen(*names: str) -> Array:
        return jnp.isin(operation, jnp.array([INDEX[name] for name in names]))[:, None, None, None]

    result = jnp.where(chosen(*TONES), remap(images, operation, level, sign), warp(images, operation, level, sign))
    result = jnp.where(chosen("color"), blend(luma(wide), wide, tenths), result)
    return jnp.where(chosen("sharpness"), blend(_smooth(wide), wide, tenths), result).astype(jnp.uint8)


def _smooth(images: Int[Array, "B h w c"]) -> Int[Array, "B h w c"]:
    """Rounded mean of 3 x 3 pixels, the middle one counted five times; the border stays."""
    height, width = images.shape[1:3]
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * images[:, 1:-1, 1:-1]
    inner = (2 * total + 13) // 26
    return images.at[:, 1 : height - 1, 1 : width - 1].set(inner)
