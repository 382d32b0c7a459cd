"""CutMix (Yun et al. 2019) and MixUp (Zhang et al. 2018): each image mixed with another of the batch, and its label.

As in the official code, one step does one of three things to the whole batch: nothing, CutMix or MixUp, with one share
λ, one box and one permutation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from common.augment import inside_boxes, uniform_integers

NONE, CUTMIX, MIXUP = 0, 1, 2


class Mix(NamedTuple):
    """What happens to a batch."""

    mode: Int[Array, ""]  # NONE, CUTMIX or MIXUP
    share: Float[Array, ""]  # λ as drawn: what an image keeps of itself
    center: Int[Array, " 2"]  # row and column of the middle of CutMix's box
    partner: Int[Array, " B"]  # the image that each image is mixed with


def draw_mix(
    key: PRNGKeyArray, batch_size: int, height: int, width: int, cutmix: float, mixup: float, alpha: float
) -> Mix:
    """A `Mix` with these probabilities of CutMix and MixUp and a share from Beta(alpha, alpha)."""
    of_uniform, of_share, of_partner = jax.random.split(key, 3)
    coin, of_row, of_column, share = jax.random.uniform(of_uniform, (4,))
    if alpha != 1.0:  # Beta(1, 1) is uniform
        share = jax.random.beta(of_share, alpha, alpha)
    return Mix(
        mode=jnp.where(coin < cutmix, CUTMIX, jnp.where(coin < cutmix + mixup, MIXUP, NONE)),
        share=share,
        center=jnp.stack([uniform_integers(of_row, height), uniform_integers(of_column, width)]),
        partner=jax.random.permutation(of_partner, batch_size),
    )


def cutmix_box(
    height: int, width: int, share: Float[Array, ""], center: Int[Array, " 2"]
) -> tuple[Int[Array, " 4"], Float[Array, ""]]:
    """CutMix's box (first row, first column, last row + 1, last column + 1), and λ: the share of the area outside it.

    The box has sqrt(1 - share) of each side, rounded down to whole pixels on either side of the centre, and is cut off
    at the image's border.
    """
    ratio = jnp.sqrt(1.0 - share)
    sides = jnp.array([height, width])
    half = jnp.floor(sides * ratio).astype(jnp.int32) // 2
    first, last = jnp.clip(center - half, 0, sides), jnp.clip(center + half, 0, sides)
    kept = 1.0 - jnp.prod(last - first) / (height * width)
    return jnp.concatenate([first, last]), kept.astype(share.dtype)


def mix(
    images: Float[Array, "B h w c"], targets: Float[Array, "B K"], drawn: Mix
) -> tuple[Float[Array, "B h w c"], Float[Array, "B K"]]:
    """Mixed images, and targets λ y + (1 - λ) y of the partner; the loss is linear in them, so this is the paper's
    λ L(y) + (1 - λ) L(y of the partner)."""
    height, width = images.shape[1:3]
    box, kept = cutmix_box(height, width, drawn.share, drawn.center)
    first_row, first_column, last_row, last_column = (edge[None] for edge in box)
    inside = inside_boxes(height, width, first_row, last_row, first_column, last_column)[..., None]
    # How much of its own value each pixel keeps: 0 or 1 for CutMix, the same everywhere for MixUp, 1 for neither.
    weight = jnp.where(drawn.mode == CUTMIX, 1.0 - inside, jnp.where(drawn.mode == MIXUP, drawn.share, 1.0))
    weight = weight.astype(images.dtype)
    share = jnp.where(drawn.mode == CUTMIX, kept, jnp.where(drawn.mode == MIXUP, drawn.share, 1.0))
    mixed = weight * images + (1.0 - weight) * images[drawn.partner]
    return mixed, share * targets + (1.0 - share) * targets[drawn.partner]


def smooth_labels(labels: Int[Array, " B"], num_classes: int, smoothing: float) -> Float[Array, "B K"]:
    """Targets with 1 - smoothing on the label and `smoothing` spread evenly over all classes, the label too."""
    return (1.0 - smoothing) * jax.nn.one_hot(labels, num_classes) + smoothing / num_classes
