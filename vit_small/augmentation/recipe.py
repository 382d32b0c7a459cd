"""The whole recipe, in the official order: flip, crop, AutoAugment, normalise, erase; then CutMix or MixUp."""

from dataclasses import dataclass

import jax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, UInt8

from common.augment import flip_horizontal, image_keys, normalize, padded_crop, uniform_integers
from common.errors import UserError, did_you_mean
from vit_small.augmentation import autoaugment, erasing, mixing
from vit_small.augmentation.policies import POLICIES

ERASE_FILLS = ("mean", "zero", "noise")


@dataclass(frozen=True)
class Augmentation:
    """What is fixed before the step is compiled; a probability of 0 leaves a part out, of the compiled step too.

    Attributes:
      num_classes: width of the targets.
      mean, std: per channel, in units of [0, 1]: one number for grey images, three for RGB.
      flip: probability of a horizontal flip.
      crop_padding: pixels of black around the image before the crop of the image's size.
      policy: "cifar10", "svhn", "imagenet" or "none".
      random_rotation_sign: rotations both ways; the official code rotates counter-clockwise only.
      erase: probability of random erasing.
      erase_area: range of the rectangle's area, as a fraction of the image's.
      erase_aspect: range of its height over its width.
      erase_attempts: how many rectangles are tried until one fits.
      erase_fill: "mean" is the official code's: the mean in units of [0, 1], painted after normalisation, so not the
        mean there; "zero" is; "noise" is standard normal.
      cutmix, mixup: probabilities for the whole batch; the rest stays unmixed.
      mix_alpha: the share is from Beta(mix_alpha, mix_alpha).
      label_smoothing: spread evenly over all classes.

    Raises:
      UserError: a value that cannot be meant, by the field's name.
    """

    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: float = 0.5
    crop_padding: int = 4
    policy: str = "cifar10"
    random_rotation_sign: bool = False
    erase: float = 0.25
    erase_area: tuple[float, float] = (0.02, 0.4)
    erase_aspect: tuple[float, float] = (0.3, 1 / 0.3)
    erase_attempts: int = 100
    erase_fill: str = "mean"
    cutmix: float = 0.25
    mixup: float = 0.25
    mix_alpha: float = 1.0
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        for name in ("flip", "erase", "cutmix", "mixup", "label_smoothing"):
            self._check(name, 0 <= getattr(self, name) <= 1, "must lie in 0..1")
        self._check("mixup", self.cutmix + self.mixup <= 1, f"must be at most 1 - cutmix, {1 - self.cutmix:g}")
        self._check("num_classes", self.num_classes >= 2, "must be at least 2")
        self._check("mean", len(self.mean) in (1, 3), "must have 1 number (grey) or 3 (RGB)")
        same = len(self.std) == len(self.mean) and min(self.std) > 0
        self._check("std", same, f"must have {len(self.mean)} numbers above 0, as many as mean")
        self._check("crop_padding", self.crop_padding >= 0, "must not be negative")
        self._check("mix_alpha", self.mix_alpha > 0, "must be above 0")
        self._check("erase_attempts", self.erase_attempts >= 1, "must be at least 1")
        low, high = self.erase_area
        self._check("erase_area", 0 < low <= high < 1, "must be a range within 0..1")
        low, high = self.erase_aspect
        self._check("erase_aspect", 0 < low <= high, "must be a range above 0")
        for name, known in (("policy", (*POLICIES, "none")), ("erase_fill", ERASE_FILLS)):
            value = getattr(self, name)
            near = did_you_mean(str(value), known)
            self._check(name, value in known, f"must be one of {', '.join(known)}{near}")

    def _check(self, name: str, fine: bool, accepted: str) -> None:
        if not fine:
            raise UserError(f"the augmentation's {name} is {getattr(self, name)!r}, but {accepted}.")


def augment(
    images: UInt8[Array, "B h w c"], labels: Int[Array, " B"], key: PRNGKeyArray, spec: Augmentation
) -> tuple[Float[Array, "B h w c"], Float[Array, "B K"]]:
    """Augmented, normalised float32 images and their targets: soft labels that sum to 1.

    Every image has its own key, made of `key` and its place in the batch; mixing has one for the batch. So the result
    does not depend on how devices split the batch.

    Raises:
      UserError: images of another number of channels than `spec.mean`, or too small for the policy.
    """
    images = augment_images(images, key, spec)
    targets = mixing.smooth_labels(labels, spec.num_classes, spec.label_smoothing)
    if not spec.cutmix + spec.mixup:
        return images, targets
    batch, height, width = images.shape[:3]
    key = jax.random.fold_in(key, 1)
    drawn = mixing.draw_mix(key, batch, height, width, spec.cutmix, spec.mixup, spec.mix_alpha)
    return mixing.mix(images, targets, drawn)


def augment_images(images: UInt8[Array, "B h w c"], key: PRNGKeyArray, spec: Augmentation) -> Float[Array, "B h w c"]:
    """The part of `augment` that treats each image by itself."""
    batch, height, width, channels = images.shape
    if channels != len(spec.mean):
        raise UserError(
            f"the images have {channels} channels, but the augmentation's mean has {len(spec.mean)} numbers; "
            "give one for each channel."
        )
    if min(height, width) < 3:
        raise UserError(f"images of {height} x {width} pixels are too small to augment; use at least 3 x 3.")
    keys = image_keys(jax.random.fold_in(key, 0), batch)
    of_place, of_policy, of_erasing, of_noise = (jax.vmap(jax.random.fold_in, (0, None))(keys, i) for i in range(4))
    of_flip, of_top, of_left = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(of_place).T
    if spec.flip:
        images = flip_horizontal(images, of_flip < spec.flip)
    if spec.crop_padding:
        top, left = (uniform_integers(uniform, 2 * spec.crop_padding + 1) for uniform in (of_top, of_left))
        images = padded_crop(images, top, left, spec.crop_padding)
    if spec.policy != "none":
        choice = autoaugment.draw_choice(of_policy, spec.policy, spec.random_rotation_sign)
        images = autoaugment.apply_choice(images, choice)
    pixels = normalize(images, spec.mean, spec.std)
    if spec.erase:
        shape = (spec.erase, spec.erase_area, spec.erase_aspect, spec.erase_attempts)
        rectangles = erasing.draw_rectangles(of_erasing, height, width, *shape)
        pixels = erasing.erase(pixels, rectangles, _fill(spec, of_noise, (height, width, channels)))
    return pixels


def _fill(spec: Augmentation, keys: Key[Array, " B"], shape: tuple[int, int, int]) -> tuple[float, ...] | Array:
    if spec.erase_fill == "noise":
        return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    return spec.mean if spec.erase_fill == "mean" else (0.0,) * shape[-1]
