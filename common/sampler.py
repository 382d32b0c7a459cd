"""Which images make up the batch of a step: an epoch is one or several shuffled passes over the data, read without a
break.

The official code of SPT and LSA calls three passes an epoch "repeated augmentation 3" (its own repetitions are 1). The
repetition of each image within a batch that the name stands for elsewhere (Hoffer et al. 2020) is `repeats`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray


def steps_per_epoch(num_images: int, batch_size: int, passes: int) -> int:
    """Whole batches in `passes` passes over the images; what is left over at the end of an epoch is not used."""
    return passes * num_images // batch_size


def batch_indices(
    key: PRNGKeyArray, step: Int[Array, ""] | int, num_images: int, batch_size: int, passes: int = 1, repeats: int = 1
) -> Int[Array, " B"]:
    """Indices 0..num_images - 1 of the images of batch number `step`.

    Args:
      key: the same at every step of a run; the order of each pass is drawn from it and the pass's number.
      step: from 0.
      num_images: in the data.
      batch_size: B; a batch that a pass cannot fill goes on with the next.
      passes: in an epoch, at whose start a new pass begins.
      repeats: each image comes so many times in a row, and one in `repeats` images comes in a pass.
    """
    per_epoch = steps_per_epoch(num_images, batch_size, passes)
    start = step % per_epoch * batch_size
    first_pass = step // per_epoch * passes + start // num_images
    spanned = 1 + -(-(batch_size - 1) // num_images)  # as many as a batch can touch
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first_pass + jnp.arange(spanned))
    orders = jax.vmap(jax.random.permutation, (0, None))(keys, num_images)
    return read_passes(orders, start % num_images, batch_size, repeats)


def read_passes(
    orders: Int[Array, "passes n"], start: Int[Array, ""] | int, batch_size: int, repeats: int = 1
) -> Int[Array, " B"]:
    """The `batch_size` images from place `start` of the first order on, going on with the next orders."""
    places = start + jnp.arange(batch_size)
    return orders[places // orders.shape[1], places % orders.shape[1] // repeats]
