"""Wires data, network and steps together, from a config."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from common import evaluation as streaming
from common import optim, parallel, rng, sampler
from common.config import check
from common.data import faces
from common.data.dataset import channel_statistics
from common.data.faces import Faces, PictureFiles
from common.errors import UserError
from common.experiment import Experiment, TrainState
from fer import check as checks
from fer import elim, grouping, matching, models, report, sampling, train, weights


class Parts(NamedTuple):
    """Frames to learn from, and those held out, one split after the other."""

    data: faces.FaceData
    train: Faces
    held_out: dict[str, Faces]  # "seen", "validation", "test", those that there are
    ranges: dict[str, range]  # of each among all held-out frames


def build(config: ConfigDict, finished: Mapping[str, TrainState]) -> Experiment:
    """The experiment of a config of this folder; raises UserError on what cannot work."""
    checks.check_config(config)
    parts = load(config)
    identity = identities(config, parts.train)
    table, counts = sampling.frame_table(identity)
    named = "age bins" if config.identity == "age" else "identities"
    if len(counts) < 2 and config.method == "elim":
        raise UserError(
            f"data set {config.dataset!r} has {len(counts)} {named} to train on, but at least 2 are matched."
        )
    checks.check_batch(config, len(parts.train), len(counts))
    recipe = make_recipe(config, *moments(config, parts.train))
    frames = {"labels": labels_of(config, parts.train), "identity": identity}
    sampled = {"table": table, "counts": counts, "seed": np.uint32(config.seed)}
    places = functools.partial(batch_places, config, len(identity))
    pictures, streamed = parts.train.images, isinstance(parts.train.images, PictureFiles)
    function, count = functools.partial(train.evaluate, recipe), sum(map(len, parts.held_out.values()))
    run = streaming.PerExample(
        function, count, config.eval_batch_size, functools.partial(pictures_of, parts) if streamed else None
    )

    def batch(data, step, key):
        found = places(data, step, key)
        return train.Batch(data["images"][found], data["labels"][found], data["identity"][found])

    init = functools.partial(train.init, recipe, pictures.shape[1:])
    pretrained = {"encoder": weights.encoder_weights(config, recipe.network)}
    place_batch = jax.jit(places)

    def host_batch(seed, step):
        found = np.asarray(place_batch(sampled, step, rng.stream(seed, "batch", step)))
        rows: Any = (pictures[found], frames["labels"][found], frames["identity"][found])
        return train.Batch(*rows)

    selection = "validation" if "validation" in parts.held_out else "test"

    def evaluate(state, data):
        outputs = run(state, data, parts.ranges[selection])
        return report.scores(config, outputs["scores"], parts.held_out[selection])

    def finish(state: TrainState, data: Any, folder: Path) -> dict[str, float]:
        outputs = functools.partial(_outputs, run, data, parts)
        untrained = jax.jit(init, out_shardings=parallel.replicated())(data, rng.stream(config.seed, "untrained"))
        return report.finish(config, state, folder, outputs, untrained, recipe, parts.data, parts.held_out)

    second = config.updates == 2
    # The baselines' second updates begin when ELIM's do, so that equal steps are equal numbers of updates.
    first = elim.first_matching_step(config.warm_up_start, config.warm_up_full)
    steps = {0: functools.partial(train.train_step, recipe, second and first == 0)}
    if second and first:
        steps[first] = functools.partial(train.train_step, recipe, True)
    balanced = config.sampler == "identity_balanced"
    in_memory = {"images": pictures, "held_out": pictures_of(parts, np.arange(count))} if not streamed else {}
    return Experiment(
        data=frames | sampled | in_memory | pretrained,
        init=init,
        train_step=steps,
        evaluate=evaluate,
        batch=None if streamed else batch,
        host_batch=host_batch if streamed else None,
        batch_field="batch_identities times batch_frames" if balanced else "batch_size",
        finish=finish,
    )


def batch_places(config: ConfigDict, count: int, data: Any, step: Any, key: Any) -> Any:
    """Which of `count` frames make up the batch of a step, [B]; traceable."""
    if config.sampler == "identity_balanced":
        people, each = config.batch_identities, config.batch_frames
        return sampling.balanced_batch(key, data["table"], data["counts"], people, each)
    # Not `key`, which changes with the step: the order of a pass belongs to the run.
    order = rng.stream(data["seed"], "order")
    return sampler.batch_indices(order, step, count, config.batch_size)


def pictures_of(parts: Parts, places: np.ndarray) -> np.ndarray:
    """uint8 [m, H, W, 3] of these places among all held-out frames."""
    first = next(iter(parts.held_out.values())).images
    images = np.empty((len(places), *first.shape[1:]), np.uint8)
    for name, within in parts.ranges.items():
        rows = (places >= within.start) & (places < within.stop)
        if rows.any():
            images[rows] = parts.held_out[name].images[places[rows] - within.start]
    return images


def _outputs(run: Any, data: Any, parts: Parts, state: Any) -> dict[str, dict[str, np.ndarray]]:
    """Latents and scores of every held-out split."""
    return {name: run(state, data, places) for name, places in parts.ranges.items()}


def load(config: ConfigDict) -> Parts:
    """The frames of a config that can be used for its task. Raises UserError."""
    options = config.faces if config.dataset == "faces" else config.table
    data = faces.load(
        config.dataset,
        image_size=config.image_size,
        path=config.dataset_path,
        seed=config.seed,
        options=options.to_dict(),
    )
    splits = {name: _usable(config, name, split) for name, split in data.splits.items()}
    held_out = {name: split for name, split in splits.items() if name != "train" and len(split)}
    ranges, start = {}, 0
    for name, split in held_out.items():
        ranges[name] = range(start, start + len(split))
        start += len(split)
    print(data.summary())
    return Parts(data, splits["train"], held_out, ranges)


def _usable(config: ConfigDict, name: str, split: Faces) -> Faces:
    """Without frames whose category is not among those that are learned."""
    if config.task != "category":
        return split
    known = (split.category >= 0) & (split.category < config.num_classes)
    if not known.any() and name in ("train", "test"):
        raise UserError(
            f"data set {config.dataset!r} has no frame with a category in {name!r}; its task is not category."
        )
    return split.take(np.flatnonzero(known))


def identities(config: ConfigDict, split: Faces) -> np.ndarray:
    """int32 [n], whom each frame is grouped with; -1: nobody (an age outside the bins)."""
    if config.identity == "person":
        return split.identity
    if np.isnan(split.age).all():
        raise UserError(f'data set {config.dataset!r} has no ages, so config.identity must be "person".')
    return np.asarray(grouping.age_bins(jnp.asarray(split.age)))


def labels_of(config: ConfigDict, split: Faces) -> np.ndarray:
    """What is learned: float32 [n, 2] or int32 [n]."""
    return split.category if config.task == "category" else split.valence_arousal


def moments(config: ConfigDict, split: Faces) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel in [0, 1]: the config's, or where it gives none the data's own."""
    if config.mean and config.std:
        return tuple(config.mean), tuple(config.std)
    streamed = isinstance(split.images, PictureFiles)
    check(config, "mean", not streamed, "must be given, and std too, where table.stream leaves nothing to measure")
    mean, std = channel_statistics(np.asarray(split.images))
    return tuple(config.mean) or mean, tuple(config.std) or std


def make_recipe(config: ConfigDict, mean: tuple[float, ...], std: tuple[float, ...]) -> train.Recipe:
    """The fixed part of a step."""
    # At a rate of 1, which the step multiplies by the schedule's: that counts iterations, not updates.
    unit = config.optimizer.copy_and_resolve_references()
    unit.unlock()
    unit.update({"schedule": "constant", "learning_rate": 1.0})
    check(config, "optimizer.name", config.optimizer.name in optim.OPTIMIZERS, f"must be one of {optim.OPTIMIZERS}")
    return train.Recipe(
        network=make_network(config),
        optimizer=optim.make_optimizer(unit),
        schedule=optim.make_schedule(config.optimizer),
        rate_factors={"encoder": 1.0, "regressor": 1.0, "header": config.header_rate_factor},
        augmentation=train.Augmentation(**config.augmentation.to_dict(), mean=mean, std=std),
        categorical=config.task == "category",
        method=config.method,
        updates=config.updates,
        identities=config.identities,
        alignment=config.alignment,
        top_k=config.top_k,
        matching=matching.Options(**config.matching.to_dict()),
        weight=config.matching_weight,
        warm_up=(config.warm_up_start, config.warm_up_full),
        encoder_clip=config.encoder_clip,
        header_statistics=config.header_statistics,
        penalty=config.penalty,
        guard=config.guard,
    )


def make_network(config: ConfigDict) -> models.Network:
    """The network of a config."""
    outputs = config.num_classes if config.task == "category" else 2
    return models.make_network(outputs=outputs, **config.model.to_dict())
