"""The training recipe's augmentation, on the device inside the compiled step: `augment(images, labels, key, spec)`."""

from vit_small.augmentation.recipe import Augmentation, augment

__all__ = ["Augmentation", "augment"]
