"""Wires data, network and steps together, from a config."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from common import evaluation as streaming
from common import optim, rng, sampler
from common.data import classification
from common.experiment import Experiment, TrainState
from vit_small import report, train
from vit_small.augmentation import Augmentation
from vit_small.check import check_config
from vit_small.design import Design
from vit_small.models import ARCHITECTURES


def build(config: ConfigDict, finished: Mapping[str, TrainState]) -> Experiment:
    """The experiment of a config of this folder; raises UserError on what cannot work."""
    dataset = classification.load_dataset(config)
    parts = classification.divide(dataset, config.selection, config.held_out_share)
    images = parts.train.images
    check_config(config, dataset.num_classes, len(images))
    recipe = make_recipe(config, dataset.num_classes, *classification.moments(config, dataset))
    count = len(parts.held_out_labels)
    run = streaming.PerExample(functools.partial(train.evaluate, recipe), count, config.eval_batch_size)

    def batch(data, step, key):
        # Not `key`, which changes with the step: the order of a pass belongs to the run.
        order = rng.stream(data["seed"], "order")
        return sampler.batch_indices(order, step, len(images), config.batch_size, config.passes, config.repeats)

    def evaluate(state, data):
        return classification.means(run(state, data, parts.selection))

    def finish(state: TrainState, data: Any, folder: Path) -> dict[str, float]:
        names = parts.train.class_names
        return report.finish(state, folder, lambda state: run(state, data, parts.test), recipe, dataset, names, config)

    return Experiment(
        data={
            "images": images,
            "labels": parts.train.labels,
            "held_out_images": parts.held_out_images,
            "held_out_labels": parts.held_out_labels,
            "seed": np.uint32(config.seed),
        },
        init=functools.partial(train.init, recipe, images.shape[1:]),
        train_step=functools.partial(train.train_step, recipe),
        evaluate=evaluate,
        batch=batch,
        finish=finish,
    )


def make_recipe(config: ConfigDict, num_classes: int, mean: tuple[float, ...], std: tuple[float, ...]) -> train.Recipe:
    """The fixed part of a step; `mean` and `std`: of normalisation, per channel in [0, 1]."""
    augmentation = Augmentation(
        num_classes=num_classes,
        mean=mean,
        std=std,
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
