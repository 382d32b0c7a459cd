"""What pre-training sees: the training images of the data set, without their labels, and more unlabelled ones."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int32, Shaped, UInt8
from ml_collections import ConfigDict

from common.augment import flip_horizontal, image_keys, normalize, padded_crop
from common.data import classification, tfds_source


class Pool(NamedTuple):
    """Images to pre-train on; labels are only reported on (and learned by the task "supervised"), -1 for none."""

    images: UInt8[np.ndarray, "N H W C"]
    labels: Int32[np.ndarray, " N"]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_pool(config: ConfigDict) -> Pool:
    """The training split and, where `unlabelled_split` names one, the images of that split of the prepared set."""
    dataset = classification.load_dataset(config)
    train = dataset.splits["train"]
    images, labels = train.images, train.labels
    if config.unlabelled_split:
        more = tfds_source.load_images(
            config.dataset, config.unlabelled_split, config.image_size, config.channels, config.dataset_path or None
        )
        images = np.concatenate([images, more])
        labels = np.concatenate([labels, np.full(len(more), -1, np.int32)])
    return Pool(images, labels, dataset.num_classes, *classification.moments(config, dataset))


class Augmentation(NamedTuple):
    """Flip and crop, then normalisation."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    padding: int  # pixels of reflected border

    def __call__(self, key: Array, images: Shaped[Array, "n H W C"]) -> Float[Array, "n H W C"]:
        """Augmented, normalised uint8 images; each image has a key of its own."""
        keys = jax.vmap(lambda k: jax.random.split(k, 2))(image_keys(key, images.shape[0]))
        if self.flip:
            images = flip_horizontal(images, jax.vmap(jax.random.bernoulli)(keys[:, 0]))
        if self.padding:
            draw = jax.vmap(lambda k: jax.random.randint(k, (2,), 0, 2 * self.padding + 1))(keys[:, 1])
            images = padded_crop(images, draw[:, 0], draw[:, 1], self.padding, "reflect")
        return normalize(images, self.mean, self.std)
