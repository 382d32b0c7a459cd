"""Wires data, network and steps together, from a config."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from common import data as datasets
from common import evaluation as streaming
from common import optim, rng
from common.experiment import Experiment, TrainState
from vit_small import report, sampler, train
from vit_small.augmentation import Augmentation
from vit_small.check import check_config
from vit_small.design import Design
from vit_small.models import ARCHITECTURES


def build(config: ConfigDict, finished: Mapping[str, TrainState]) -> Experiment:
    """The experiment of a config of this folder; raises UserError on what cannot work."""
    dataset = load(config)
    images, labels, held_out, held_out_labels, selection = split(config, dataset)
    check_config(config, dataset.num_classes, len(images))
    recipe = make_recipe(config, dataset.num_classes, dataset.mean, dataset.std)
    count = len(held_out)
    run = streaming.PerExample(functools.partial(train.evaluate, recipe), count, config.eval_batch_size)

    def batch(data, step, key):
        # Not `key`, which changes with the step: the order of a pass belongs to the run.
        order = rng.stream(data["seed"], "order")
        return sampler.batch_indices(order, step, len(images), config.batch_size, config.passes, config.repeats)

    def evaluate(state, data):
        return report.means(run(state, data, selection))

    def finish(state: TrainState, data: Any, folder: Path) -> dict[str, float]:
        test = range(count - len(dataset.splits["test"].labels), count)
        names = dataset.splits["train"].class_names
        return report.finish(state, folder, lambda state: run(state, data, test), recipe, dataset, names, config)

    return Experiment(
        data={
            "images": images,
            "labels": labels,
            "held_out_images": held_out,
            "held_out_labels": held_out_labels,
            "seed": np.uint32(config.seed),
        },
        init=functools.partial(train.init, recipe, images.shape[1:]),
        train_step=functools.partial(train.train_step, recipe),
        evaluate=evaluate,
        batch=batch,
        finish=finish,
    )


def load(config: ConfigDict) -> datasets.Dataset:
    """The data set of a config."""
    return datasets.load(
        config.dataset,
        task="classification",
        image_size=config.image_size,
        channels=config.channels,
        path=config.dataset_path or None,
        options=config.glyphs.to_dict() if config.dataset == "glyphs" else {},
    )


def split(config: ConfigDict, dataset: datasets.Dataset):
    """(training images, labels, held-out images, labels, places among them that choose the best epoch).

    Held out are a share of the training images where the config asks for it, then the test images.
    """
    train_split, test = dataset.splits["train"], dataset.splits["test"]
    if config.selection == "test":
        return train_split.images, train_split.labels, test.images, test.labels, range(len(test.labels))
    if "validation" in dataset.splits:
        chosen = dataset.splits["validation"]
        kept = train_split
    else:
        order = np.random.default_rng(0).permutation(len(train_split.labels))
        size = max(1, round(config.held_out_share * len(order)))
        parts = [np.sort(part) for part in (order[:size], order[size:])]
        chosen, kept = (
            datasets.Split(train_split.images[part], train_split.labels[part], train_split.class_names)
            for part in parts
        )
    held_out = [np.concatenate(pair) for pair in ((chosen.images, test.images), (chosen.labels, test.labels))]
    return kept.images, kept.labels, *held_out, range(len(chosen.labels))


def make_recipe(config: ConfigDict, num_classes: int, mean: tuple[float, ...], std: tuple[float, ...]) -> train.Recipe:
    """The fixed part of a step; `mean` and `std` are the data's own, used where the config gives none."""
    augmentation = Augmentation(
        num_classes=num_classes,
        mean=tuple(config.mean) or tuple(mean),
        std=tuple(config.std) or tuple(std),
        **config.augmentation.to_dict(),
    )
    decayed = only_matrices if config.decay == "matrices" else None
    return train.Recipe(make_model(config, num_classes), optim.make_optimizer(config.optimizer, decayed), augmentation)


def make_model(config: ConfigDict, num_classes: int) -> Any:
    """The network of a config."""
    sizes = config.model.to_dict()
    architecture = ARCHITECTURES[sizes.pop("architecture")]
    design = Design(
        spt=config.spt,
        spt_pool=config.spt_pool,
        directions=config.directions,
        shift_ratio=config.shift_ratio,
        fused=config.spt_form == "fused",
        learned_temperature=config.lsa and config.lsa_parts in ("both", "temperature"),
        temperature_per=config.temperature_per,
        mask_diagonal=config.lsa and config.lsa_parts in ("both", "mask"),
        drop_path=config.drop_path,
        drop_path_form=config.drop_path_form,
        token_std=None if config.token_init == "official" else 0.02,
        scan=config.layers == "scan",
        dtype=None if config.dtype == "float32" else jnp.dtype(config.dtype),
    )
    return architecture(num_classes=num_classes, design=design, **sizes)


def only_matrices(params: Any) -> Any:
    """Which parameters decay under `decay = "matrices"`: kernels, no biases, norms, positions or temperatures."""
    paths = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: path[-1] == "kernel" for path in paths})
