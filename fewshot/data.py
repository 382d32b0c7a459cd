"""Which images and episodes a config stands for: drawn on the device, or by the host where it holds the images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from common import data as datasets
from common import parallel, rng
from common.config import check
from common.data import folder
from common.errors import UserError
from fewshot import episodes

# Read by --mode=eval and --mode=analyse alone.
EVALUATION_FIELDS = ("eval_dataset", "eval_dataset_path", "eval_difficulty", "eval_analysis_episodes")


class Episodes(NamedTuple):
    """The data of a run. Exactly one of `batch` and `host_batch` is given; see `common.experiment.Experiment`."""

    dataset: datasets.Dataset
    image_shape: tuple[int, int, int]
    arrays: dict[str, np.ndarray]  # for the device
    validation: range  # which of the evaluation's episodes; empty where another data set is evaluated
    test: range
    batch: Callable[[Any, Any, Any], Any] | None
    host_batch: Callable[[int, int], Any] | None
    fetch: Callable[[np.ndarray], Any] | None  # images of evaluation episodes, where the host holds them


def load(config: ConfigDict) -> Episodes:
    """Read the data set (and the one to evaluate, if another), check that the episodes fit, choose where images live.

    The images of validation and test lie in one array, and so do their episodes: one program evaluates both. These
    episodes are the same whatever the seed of the run, as in the official code, so that runs can be compared.

    Raises:
      UserError: data that are missing, damaged or too small for the episodes.
    """
    dataset = _load(config, config.dataset, config.dataset_path, config.glyphs.difficulty)
    held_out = {split: dataset.splits[split] for split in ("validation", "test")}
    if config.eval_dataset:
        held_out = {"test": _other_test_split(config)}
    shape = (config.ways, config.shots, config.queries)
    sizes = {}
    for split, content in {"train": dataset.splits["train"], **held_out}.items():
        sizes[split] = np.bincount(content.labels)
        if not (config.eval_dataset and split == "train"):  # nothing is trained then
            whose = f"{split} of {config.eval_dataset}" if config.eval_dataset else split
            episodes.check_episode_fits(sizes[split], content.class_names, *shape, whose)
    images = dataset.splits["train"].images
    if config.eval_dataset:
        images = images[:1]
    evaluated, ranges = _evaluation_episodes(config, held_out, sizes)
    pictures = np.concatenate([content.images for content in held_out.values()])
    arrays = {
        "class_sizes": sizes["train"].astype(np.int32),
        "class_offsets": (np.cumsum(sizes["train"]) - sizes["train"]).astype(np.int32),
        "episodes": evaluated,
    }
    place = images_on(config, images.nbytes + pictures.nbytes)
    on_host = place == "host"
    if parallel.is_main():
        print(f"Data: {dataset.summary()}; images held by the {place}.")
        if config.transduction != "off":
            print(f"Transductive: the run adapts to query images too (config.transduction={config.transduction!r}).")
        if config.eval_dataset:
            test = held_out["test"]
            print(f"Tested on: {config.eval_dataset}, {test.num_classes} classes, {len(test.images)} images.")
    if not on_host:
        arrays |= {"train": images, "held_out": pictures}
    batch, host_batch = _samplers(config, sizes["train"], images if on_host else None)
    return Episodes(
        dataset=dataset,
        image_shape=images.shape[1:],
        arrays=arrays,
        validation=ranges.get("validation", range(0)),
        test=ranges["test"],
        batch=batch,
        host_batch=host_batch,
        fetch=(lambda indices: gather(pictures, evaluated[indices])) if on_host else None,
    )


# --- data sets ------------------------------------------------------------------------------------------------------


def _load(config: ConfigDict, name: str, path: str, difficulty: str, task: str = "fewshot") -> datasets.Dataset:
    options: dict[str, Any] = {}
    if name == "glyphs":
        options = config.glyphs.to_dict() | {"difficulty": difficulty}
    elif name == "folder":
        options = {"min_images_per_class": config.shots + config.queries}
        if task == "fewshot":
            options["min_classes_per_split"] = config.ways
    size = {"image_size": config.image_size, "channels": config.channels}
    return datasets.load(name, task=task, path=path or None, options=options, **size)


def _other_test_split(config: ConfigDict) -> datasets.Split:
    """The test split of `eval_dataset`; where that has no few-shot splits, all its classes serve."""
    name, path = config.eval_dataset, config.eval_dataset_path
    fewshot = name in datasets.names("fewshot") and not (name == "folder" and path and not folder.has_splits(path))
    try:
        if fewshot or name not in datasets.names():
            return _load(config, name, path, config.eval_difficulty or config.glyphs.difficulty).splits["test"]
        return pool(_load(config, name, path, "", "classification"))
    except UserError as error:  # which knows these fields by the names that training has for them
        message = str(error).replace("config.dataset", "config.eval_dataset")
        raise UserError(f"config.eval_dataset is {name!r}: {message}") from error


def pool(dataset: datasets.Dataset) -> datasets.Split:
    """All images of a data set whose splits share their classes, class by class, classes sorted by name."""
    names = np.array(dataset.splits["train"].class_names)
    order = np.argsort(names, kind="stable")
    labels = np.argsort(order)[np.concatenate([split.labels for split in dataset.splits.values()])].astype(np.int32)
    by_class = np.argsort(labels, kind="stable")
    images = np.concatenate([split.images for split in dataset.splits.values()])
    return datasets.Split(images[by_class], labels[by_class], tuple(map(str, names[order])))


def check_evaluation(config: ConfigDict) -> None:
    """Raise UserError for fields of the evaluation that do not go together."""
    alone = config.eval_dataset_path and not config.eval_dataset
    check(config, "eval_dataset_path", not alone, "must come with config.eval_dataset, 'folder' for your own pictures")
    unread = config.eval_difficulty and config.eval_dataset != "glyphs"
    check(config, "eval_difficulty", not unread, "must come with config.eval_dataset 'glyphs'")


# --- episodes -------------------------------------------------------------------------------------------------------


def _evaluation_episodes(config, held_out, sizes) -> tuple[np.ndarray, dict[str, range]]:
    """Image indices of all evaluation episodes, and which of them each split has."""
    base, shape = episodes.official_base_seed(0), (config.ways, config.shots, config.queries)
    counts = {"validation": config.eval_episodes, "test": config.test_episodes}
    drawn, ranges, image, episode = [], {}, 0, 0
    for split, content in held_out.items():
        drawn.append(episodes.official_episodes(base, 0, counts[split], sizes[split], *shape) + np.int32(image))
        ranges[split] = range(episode, episode + counts[split])
        image, episode = image + len(content.images), episode + counts[split]
    return np.concatenate(drawn), ranges


def _samplers(config: ConfigDict, train_sizes: np.ndarray, images: np.ndarray | None):
    """(batch, host_batch) of the training episodes, one of them None. `images`: those that the host holds."""
    shape = {"ways": config.ways, "shots": config.shots, "queries": config.queries}
    fixed = {"num_tasks": config.tasks_per_step, "max_class_size": int(train_sizes.max()), **shape}
    sizes = train_sizes.astype(np.int32)
    offsets = np.cumsum(sizes, dtype=np.int32) - sizes

    def official(seed: int, step: int) -> np.ndarray:
        first, base = step * config.tasks_per_step, episodes.official_base_seed(seed)
        return episodes.official_episodes(base, first, config.tasks_per_step, train_sizes, *shape.values())

    def on_device(data, step, key):
        return episodes.sample_episodes(key, data["class_offsets"], data["class_sizes"], **fixed)

    def on_host(seed: int, step: int) -> np.ndarray:
        """The same draw, by a CPU of this process."""
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            key = rng.stream(jnp.uint32(seed), "batch", step)
            return np.asarray(episodes.sample_episodes(key, jnp.asarray(offsets), jnp.asarray(sizes), **fixed))

    if images is None:
        return (None, official) if config.sampler == "official" else (on_device, None)
    draw = official if config.sampler == "official" else on_host
    return None, lambda seed, step: gather(images, draw(seed, step))


# --- where the images live ------------------------------------------------------------------------------------------


def images_on(config: ConfigDict, num_bytes: int) -> str:
    """'device' or 'host'. 'auto' is the device unless the images would fill more than half of its memory."""
    if config.images_on != "auto":
        return config.images_on
    memory = device_memory()
    return "host" if memory is not None and num_bytes > memory / 2 else "device"


def device_memory() -> int | None:
    """Bytes that the smallest local device can hold; None where that is the host's own memory (CPU)."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    return min((limit for limit in limits if limit), default=None)


def gather(images: np.ndarray, indices: np.ndarray) -> parallel.Rows:
    """The images [B, N, K + Q, h, w, c] of episodes [B, N, K + Q]; each process reads those of its own devices."""
    return parallel.Rows((*indices.shape, *images.shape[1:]), lambda rows: images[indices[rows]])
