"""Reconstruction of the clean image from a corrupted one: one decoder and one loss for four tasks.

Sources: denoising [Vincent et al. 2008], inpainting [Pathak et al. 2016], colorization [Zhang et al. 2016, here as
regression of RGB].
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from common.config import check as check_field
from multitask import views
from multitask.losses import reconstruction_loss
from multitask.models import Decoder
from multitask.tasks.task import Context, Rows, Task, View

NAMES = ("autoencoder", "denoising", "inpainting", "colorization")


def make(name: str, context: Context) -> Task:
    """The task of this name."""
    config = context.config
    stages = context.encoder.strides[-1].bit_length() - 1
    channels = tuple(config.decoder.channels)[:stages]

    def head(train: bool) -> nn.Module:
        return Decoder(channels, config.channels, train)

    def view(key: Array, images: Array, rows: Rows) -> View:
        seen, mask = images, jnp.ones((*images.shape[:-1], 1))
        if name == "denoising":
            seen = images + config.denoising.std * jax.random.normal(key, images.shape)
        elif name == "inpainting":
            mask = random_holes(key, images)
            seen = views.mask_hole(images, mask)
        elif name == "colorization":
            seen = grey_view(images, context.mean, context.std)
        return View(seen, {"image": images, "mask": mask})

    def loss(predicted: Array, target: dict[str, Array], critic: None) -> tuple[Array, dict[str, Array]]:
        if name != "inpainting":
            return reconstruction_loss(predicted, target["image"]), {}
        value = reconstruction_loss(predicted, target["image"], target["mask"])
        if config.inpainting.context_weight:
            around = reconstruction_loss(predicted, target["image"], 1 - target["mask"])
            value = value + config.inpainting.context_weight * around
        return value, {}

    return Task(name, head, view, loss, regression=True)


def random_holes(key: Array, images: Float[Array, "n s s c"]) -> Float[Array, "n s s 1"]:
    """A mask of a square hole of half the side, at a uniform position."""
    n, side = images.shape[:2]
    corners = jax.random.randint(key, (n, 2), 0, side - side // 2 + 1)
    return views.hole_mask(corners, side // 2, side, side)


def grey_view(
    images: Float[Array, "n H W 3"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "n H W 3"]:
    """Grey of the images before normalisation, normalised like them."""
    shift, scale = (jnp.asarray(values, jnp.float32)[None, None, None] for values in (mean, std))
    return (views.to_gray(images * scale + shift) - shift) / scale


def check(config: ConfigDict) -> None:
    """Raise UserError for fields with which these tasks cannot work."""
    check_field(config, "denoising.std", config.denoising.std >= 0, "must be at least 0")
    weight = config.inpainting.context_weight
    check_field(config, "inpainting.context_weight", weight >= 0, "must be at least 0")
    gray = "colorization" in config.tasks and config.channels != 3
    check_field(config, "channels", not gray, "must be 3 for the task 'colorization'")
    channels = config.decoder.channels
    check_field(config, "decoder.channels", min(channels, default=0) >= 1, "must be numbers above 0")
