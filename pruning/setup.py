"""Data, network and search of a run, from its config; shared by all phases."""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from common.augment import normalize
from common.checkpoint import read_run
from common.config import check
from common.data import Dataset, classification
from common.errors import UserError
from common.experiment import TrainState
from pruning import complexity, official_weights, splits
from pruning.augment import Augmentation
from pruning.candidates import Evaluator
from pruning.graph import Graph
from pruning.models import ARCHITECTURES
from pruning.models.network import Network
from pruning.search import Search, Settings


class Setting(NamedTuple):
    """What all phases share."""

    dataset: Dataset
    graph: Graph  # of the whole network
    augmentation: Augmentation

    def normalise(self, images: np.ndarray) -> Float[Any, "n h w c"]:
        """Network input."""
        return _normalise(self.augmentation, images)


@functools.partial(jax.jit, static_argnums=0)
def _normalise(augmentation: Augmentation, images: Array) -> Float[Any, "n h w c"]:
    return normalize(images, augmentation.mean, augmentation.std)


def load(config: ConfigDict) -> Setting:
    """Data and network."""
    dataset = classification.load_dataset(config)
    check(config, "dataset", dataset.num_classes >= 2, f"must have 2 classes, but has {dataset.num_classes}")
    mean, std = classification.moments(config, dataset)
    return Setting(dataset, graph_of(config, dataset.num_classes), Augmentation(mean, std, **config.augmentation))


def graph_of(config: ConfigDict, num_classes: int) -> Graph:
    """The whole network; its gates do not depend on the number of classes."""
    return ARCHITECTURES[config.model.architecture](num_classes, config.channels)


def search_of(config: ConfigDict, graph: Graph) -> Search:
    """The search of a config."""
    own = config.search
    settings = Settings(
        own.target, own.step, own.criterion, own.marking, config.search_teacher, own.rates, own.normalise
    )
    flops = functools.partial(complexity.flops_of, graph, config.image_size)
    return Search(graph, settings, flops, Evaluator(graph, own.evaluation, own.batch_size, own.chunk))


def validation(config: ConfigDict, dataset: Dataset) -> tuple[np.ndarray, Int[np.ndarray, " n"]]:
    """Images and labels of D_val."""
    train = dataset.splits["train"]
    indices = splits.validation_images(train.labels, train.num_classes, config.search.images_per_class)
    for size in {min(config.search.batch_size, len(indices)), len(indices) % config.search.batch_size}:
        fits = size % jax.device_count() == 0
        accepted = f"must give batches that divide over {jax.device_count()} devices, but gives one of {size} images"
        check(config, "search.batch_size", fits, accepted)
    return train.images[indices], train.labels[indices]


def dense_variables(config: ConfigDict, graph: Graph, finished: Mapping[str, TrainState]) -> dict[str, Any]:
    """{"params", "batch_stats"} of the whole network: from the phase that trained it, a run, or an official file.

    Raises UserError if `config.dense` is neither, or holds another architecture.
    """
    if "dense" in finished:
        return variables_of(finished["dense"])
    path = Path(config.dense)
    if path.is_file():
        params, stats = official_weights.read(path, graph)
        return {"params": params, "batch_stats": stats}
    folder = path / "dense" if (path / "dense").is_dir() else path
    if not (folder / "checkpoints").is_dir():
        raise UserError(
            f"config.dense is {config.dense!r}, but must be empty (train it here), the work directory of a run of this "
            "program, or an .npz file of official weights."
        )
    _, tree = read_run(folder)
    wanted = jax.eval_shape(lambda: initial(graph, config))
    found = {"params": tree["params"], "batch_stats": tree.get("model_state", {}).get("batch_stats", {})}
    if jax.tree.map(jnp.shape, found) != jax.tree.map(jnp.shape, wanted):
        raise UserError(
            f"config.dense is {config.dense!r}, but the network there is not {config.model.architecture} with "
            f"{graph.num_classes} classes and {graph.image_channels} channels."
        )
    return found


def initial(graph: Graph, config: ConfigDict) -> Any:
    """Fresh variables, for their shapes."""
    shape = (1, config.image_size, config.image_size, config.channels)
    return dict(Network(graph).init(jax.random.key(0), jnp.zeros(shape)))


def variables_of(state: TrainState) -> dict[str, Any]:
    """{"params", "batch_stats"} of a state."""
    return {"params": state.params, "batch_stats": state.model_state["batch_stats"]}


def batch_indices(seed: int, step: int, count: int, batch_size: int) -> Int[np.ndarray, " b"]:
    """Images of a training step: each epoch is one shuffled pass, what is left over at its end is not used."""
    epoch, place = divmod(step, count // batch_size)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return order[place * batch_size : (place + 1) * batch_size].astype(np.int32)


def batches(setting: Setting, images: np.ndarray, size: int) -> Iterator[Float[Any, "b h w c"]]:
    """Normalised images in order, the last batch as short as it is."""
    for first in range(0, len(images), size):
        yield setting.normalise(images[first : first + size])
