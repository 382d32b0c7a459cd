"""RD-MVTec (introduced by PaDiM): images turned by a few degrees and cropped at random, so that nothing is aligned.

An image and its mask get the same draw. (The official code draws for the mask anew, so that its masks do not match.)
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Num

from common.augment import rotate_and_crop

DEGREES = 10.0  # angles are uniform in [-10, 10]


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
