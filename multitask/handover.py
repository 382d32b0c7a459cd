"""What pre-training hands to a target task: the encoder, its weights, and the normalisation of its images."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from common import rng
from common.data import Dataset, classification
from common.experiment import TrainState
from multitask.models import Encoder, make_encoder

PHASE = "pretrain"


class Start(NamedTuple):
    """Where a target task starts."""

    encoder: Encoder
    variables: Any  # {"params", "batch_stats"} of the encoder
    mean: tuple[float, ...]  # per channel in [0, 1], of `common.augment.normalize`
    std: tuple[float, ...]


def start(config: ConfigDict, finished: Mapping[str, TrainState], dataset: Dataset | None = None) -> Start:
    """The encoder that `transfer.source` asks for; without a pre-training phase (scratch) a fresh one.

    Its images are normalised as in pre-training, from scratch too. `dataset`: that of pre-training, read if not given.
    """
    encoder = make_encoder(config.encoder.name, config.encoder.stem, config.encoder.width)
    mean, std = classification.moments(config, dataset or classification.load_dataset(config))
    if PHASE not in finished:
        fresh = encoder.module().init(rng.stream(config.seed, "encoder"), jnp.zeros((1, 32, 32, 3)))
        return Start(encoder, {"params": fresh["params"], "batch_stats": fresh["batch_stats"]}, mean, std)
    return Start(encoder, pretrained_variables(finished[PHASE], config.transfer.source), mean, std)


def pretrained_variables(state: TrainState, source: str) -> Any:
    """{"params", "batch_stats"} of a pre-trained encoder: the teacher's, where one exists, or the "online" one."""
    if source == "teacher" and "teacher" in state.model_state:
        teacher = state.model_state["teacher"]
        return {"params": teacher["params"]["backbone"], "batch_stats": teacher["batch_stats"]["backbone"]}
    return {"params": state.params["backbone"], "batch_stats": state.model_state["batch_stats"]["backbone"]}


def frozen_features(encoder: Encoder, variables: Any, images: jax.Array) -> dict[str, jax.Array]:
    """Maps and pooled features of normalised images [n, H, W, 3] in evaluation mode, without a gradient."""
    return jax.lax.stop_gradient(encoder.module().apply(variables, images))  # pyright: ignore[reportReturnType]
