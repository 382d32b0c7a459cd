"""An encoder's published weights in PyTorch's names, such as those of ImageNet that the paper starts from."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from common.models.weights import find_weights
from common.pretrained import match, read_weights, torch_entries
from fer import models

_IGNORED = ("classifier.*", "*num_batches_tracked")  # what AlexNet's encoder does not have
_SIDE = 64  # parameters do not depend on it


def encoder_weights(config: ConfigDict, network: models.Network) -> dict[str, Any]:
    """{"params": ..., "batch_stats": ...} of the encoder from `config.encoder_weights`; {} for "random".

    Raises:
      UserError: unknown, missing or damaged weights, or weights of another network.
    """
    file = find_weights(config.model.backbone, config.encoder_weights)
    if file is None:
        return {}
    template: Any = jax.eval_shape(network.encoder.init, jax.random.key(0), jnp.zeros((1, _SIDE, _SIDE, 3)))
    inner = "resnet" if config.model.backbone == "resnet18" else None
    variables = {kind: tree[inner] if inner else tree for kind, tree in template.items()}
    weights: dict[str, np.ndarray] = read_weights(file)
    found = match(weights, torch_entries(variables), variables, _IGNORED, str(file)).tree
    return {kind: {inner: tree} if inner else tree for kind, tree in found.items()}
