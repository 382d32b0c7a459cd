"""Features of a frozen encoder for all images of a split."""

from typing import Any

from jaxtyping import Array, Float

from common.augment import normalize
from common.evaluation import PerExample
from multitask import handover
from multitask.transfer.probe import adaptive_average_pool


def extractor(start: handover.Start, layer: str, most: int, split: str, count: int, batch_size: int) -> Any:
    """(variables, data) -> features [count, d] of the images data[split].

    Args:
      start: encoder and normalisation; the variables are an argument.
      layer: "pooled", or a map, which is averaged over a grid of at most `most` numbers an image.
      split: the key of uint8 images [count, H, W, 3] in the data.
    """

    def features(variables: Any, data: dict[str, Any], indices: Array) -> Float[Array, "B d"]:
        images = normalize(data[split][indices], start.mean, start.std)
        found = handover.frozen_features(start.encoder, variables, images)[layer]
        return found if layer == "pooled" else adaptive_average_pool(found, most)

    return PerExample(features, count, batch_size)
