"""The operations of AutoAugment on a batch in which every image has its own.

`lax.switch` under `vmap` computes all fourteen operations for every image, and five of them read pixels from
elsewhere. Here those five are one warp; the others are arithmetic on each pixel, a histogram, and one 3 x 3 mean.
Images are planes [c, B, h, w] here: XLA's code for the CPU is several times slower with the channels last.
"""

import jax.numpy as jnp
from jaxtyping import Array, Int, UInt8

from vit_small.augmentation.geometry import warp
from vit_small.augmentation.policies import INDEX
from vit_small.augmentation.tone import blend, enhancement_factor, luma, tones


def apply_operations(
    planes: UInt8[Array, "c B h w"], operation: Int[Array, " B"], level: Int[Array, " B"], sign: Int[Array, " B"]
) -> UInt8[Array, "c B h w"]:
    """Each image after its operation.

    Equal to Pillow's but for one grey level in few pixels of shears and autocontrast, where Pillow's float64
    arithmetic falls just below a whole number. Nothing depends on how a backend rounds.

    Args:
      planes: grey (c = 1) or RGB (c = 3).
      operation: index into `policies.OPERATIONS`.
      level: 0..9, see `policies.MAGNITUDES`.
      sign: 1 or -1: direction of shears, translations and rotations, and whether color, contrast, sharpness and
        brightness gain or lose. The official code always rotates by 1, counter-clockwise.
    """
    wide = planes.astype(jnp.int32)
    factor = enhancement_factor(level, sign)
    results = tones(wide, level, sign)
    results["color"] = blend(jnp.broadcast_to(luma(wide), wide.shape), wide, factor)
    results["sharpness"] = blend(_smooth(wide), wide, factor)
    chosen = warp(wide, operation, level, sign)
    for name, result in results.items():
        chosen = jnp.where((operation == INDEX[name])[None, :, None, None], result, chosen)
    return chosen.astype(jnp.uint8)


def _smooth(planes: Int[Array, "c B h w"]) -> Int[Array, "c B h w"]:
    """Rounded mean of 3 x 3 pixels, the middle one counted five times; the border stays."""
    height, width = planes.shape[2:]
    rows = planes[:, :, :-2] + planes[:, :, 1:-1] + planes[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * planes[:, :, 1:-1, 1:-1]
    return planes.at[:, :, 1 : height - 1, 1 : width - 1].set((2 * total + 13) // 26)
