"""The papers' augmentation: flip, small rotations, padded crops; then normalisation."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from common.augment import flip_horizontal, image_keys, normalize, padded_crop, rotate_and_crop, uniform_integers
from common.errors import UserError


@dataclass(frozen=True)
class Augmentation:
    """What is fixed before the step is compiled; 0 leaves a part out.

    Attributes:
      mean, std: per channel, in units of [0, 1].
      flip: probability of a horizontal flip.
      rotation: largest angle in degrees, uniform to both sides, nearest pixel (code of KD-SVD).
      crop_padding: pixels around the image before the crop of the image's size.
      crop_mode: what the padding holds: "reflect" (toolbox) or "constant" (zeros; code of KD-SVD).
      batch_crop: one place for the whole batch (published toolbox) instead of one for each image.

    Raises:
      UserError: a value that cannot be meant.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: float = 0.0
    rotation: float = 0.0
    crop_padding: int = 0
    crop_mode: str = "reflect"
    batch_crop: bool = False

    def __post_init__(self) -> None:
        for name, fine, accepted in (
            ("flip", 0 <= self.flip <= 1, "must lie in 0..1"),
            ("rotation", 0 <= self.rotation <= 180, "must lie in 0..180 degrees"),
            ("crop_padding", self.crop_padding >= 0, "must not be negative"),
            ("crop_mode", self.crop_mode in ("reflect", "constant"), "must be 'reflect' or 'constant'"),
        ):
            if not fine:
                raise UserError(f"config.augmentation.{name} is {getattr(self, name)!r}, but {accepted}.")

    @property
    def nothing(self) -> bool:
        """Whether an image always looks the same."""
        return not (self.flip or self.rotation or self.crop_padding)


def augment(images: UInt8[Array, "B h w c"], key: PRNGKeyArray, spec: Augmentation) -> Float[Array, "B h w c"]:
    """Augmented and normalised images. Each has its own key, so the result does not depend on how devices split it."""
    batch, height, width = images.shape[:3]
    uniform = jax.vmap(lambda own: jax.random.uniform(own, (4,)))(image_keys(key, batch))
    if spec.flip:
        images = flip_horizontal(images, uniform[:, 0] < spec.flip)
    if spec.rotation:
        degrees = spec.rotation * (2 * uniform[:, 1] - 1)
        nowhere = jnp.zeros(2, jnp.int32)
        images = jax.vmap(lambda image, angle: rotate_and_crop(image, angle, nowhere, height, width))(images, degrees)
    if spec.crop_padding:
        places = uniform_integers(uniform[:, 2:], 2 * spec.crop_padding + 1)
        if spec.batch_crop:
            places = jnp.broadcast_to(places[:1], places.shape)
        images = padded_crop(images, places[:, 0], places[:, 1], spec.crop_padding, spec.crop_mode)
    return normalize(images, spec.mean, spec.std)
