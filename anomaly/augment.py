"""RD-MVTec (introduced by PaDiM): images turned by a few degrees and cropped at random, so that nothing is aligned.

An image and its mask get the same draw. (The official code draws for the mask anew, so that its masks do not match.)
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

DEGREES = 10.0  # angles are uniform in [-10, 10]


def rotate_and_crop(
    image: Num[Array, "H W c"], degrees: Float[Array, ""], offset: Int[Array, "2"], height: int, width: int
) -> Num[Array, "h w c"]:
    """The image turned counter-clockwise about its centre, then [height, width] of it from `offset` (top, left) on.

    Nearest pixel, zeros where the image has none, size unchanged by the turn: Pillow's `rotate`.
    """
    rows, columns = image.shape[:2]
    radians = -jnp.deg2rad(degrees)
    cosine, sine = jnp.cos(radians), jnp.sin(radians)
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    y, x = y + offset[0] - rows / 2, x + offset[1] - columns / 2
    from_column = jnp.floor(cosine * x + sine * y + columns / 2).astype(jnp.int32)
    from_row = jnp.floor(-sine * x + cosine * y + rows / 2).astype(jnp.int32)
    inside = (from_row >= 0) & (from_row < rows) & (from_column >= 0) & (from_column < columns)
    taken = image[jnp.clip(from_row, 0, rows - 1), jnp.clip(from_column, 0, columns - 1)]
    return jnp.where(inside[..., None], taken, jnp.zeros_like(taken))


def random_rotate_and_crop(
    images: Num[Array, "B H W c"], keys: Array, height: int, width: int
) -> Num[Array, "B h w c"]:
    """`rotate_and_crop` of every image with a draw from its own key."""

    def one(image, key):
        turn, place = jax.random.split(key)
        degrees = jax.random.uniform(turn, minval=-DEGREES, maxval=DEGREES)
        room = jnp.asarray([image.shape[0] - height + 1, image.shape[1] - width + 1])
        return rotate_and_crop(image, degrees, jax.random.randint(place, (2,), 0, room), height, width)

    return jax.vmap(one)(images, keys)
