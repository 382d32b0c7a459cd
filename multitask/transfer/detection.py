"""Target task: object detection, on the pre-trained encoder and fine-tuned as a whole."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from common import optim, parallel, plots, rng, sampler
from common.config import check as check_field
from common.config import check_choice, check_positive
from common.data import detection as datasets
from common.evaluation import PerExample
from common.experiment import Experiment, TrainState
from multitask import handover
from multitask.detection import augment, centernet, ssd, train, voc_ap
from multitask.detection.network import NECKS, CenterNetHead, Detector, Neck, SsdHead, level_sizes, num_ups
from multitask.models import make_encoder
from multitask.transfer import figures
from multitask.transfer.phase import loop_fields

HEADS = ("centernet", "ssd")


def overrides(config: ConfigDict) -> dict[str, Any]:
    """Fields of the loop in this phase."""
    return loop_fields(config.detection, config.detection.num_steps)


def check(config: ConfigDict) -> None:
    """Raise UserError for fields that cannot work, alone or together."""
    own = config.detection
    check_choice(config, "detection.head", HEADS)
    check_choice(config, "detection.neck", NECKS)
    check_choice(config, "detection.gaussian_radius", centernet.RADII)
    check_choice(config, "detection.dataset", datasets.names())
    names = ("image_size", "batch_size", "stride", "neck_channels", "head_channels", "max_detections", "min_scale")
    check_positive(config, *(f"detection.{name}" for name in names))
    check_field(config, "detection.neck_blocks", own.neck_blocks >= 0, "must not be negative")
    check_field(config, "detection.num_steps", own.num_steps >= 1, "must be at least 1: a detector has to be trained")
    ordered = own.max_scale >= own.min_scale
    check_field(config, "detection.max_scale", ordered, f"must be at least detection.min_scale, {own.min_scale}")
    check_field(config, "detection.colour", 0 <= own.colour < 1, "must lie in 0..1, below 1")
    between = 0 < own.voc.iou_threshold <= 1
    check_field(config, "detection.voc.iou_threshold", between, "must lie between 0 and 1")
    check_field(config, "detection.voc.box_offset", own.voc.box_offset in (0, 1), "must be 0 or 1 pixels")
    encoder = make_encoder(config.encoder.name, config.encoder.stem, config.encoder.width)
    fits = num_ups(encoder, own.stride) is not None
    last = encoder.strides[-1]
    check_field(config, "detection.stride", fits, f"must be the encoder's stride {last} halved some times, or it")
    whole = own.image_size % last == 0
    check_field(config, "detection.image_size", whole, f"must be a multiple of the encoder's stride, {last}")
    if own.head == "ssd":
        _check_ssd(config)
    else:
        most = (own.image_size // own.stride) ** 2
        check_field(
            config, "detection.max_detections", own.max_detections <= most, f"must be at most {most}, the cells"
        )


def _check_ssd(config: ConfigDict) -> None:
    own = config.detection.ssd
    check_field(config, "detection.ssd.scales", len(own.scales) >= 2, "must have one more number than there are maps")
    rising = list(own.scales) == sorted(own.scales) and own.scales[0] > 0
    check_field(config, "detection.ssd.scales", rising, "must be rising numbers above 0")
    check_field(config, "detection.ssd.ratios", min(own.ratios, default=1) > 0, "must be numbers above 0")
    check_field(config, "detection.ssd.nms_threshold", 0 < own.nms_threshold <= 1, "must lie between 0 and 1")
    check_positive(config, "detection.ssd.candidates")


def build(config: ConfigDict, finished: Mapping[str, TrainState]) -> Experiment:
    """The experiment of this phase; raises UserError on what cannot work."""
    check(config)
    own = config.detection
    dataset = datasets.load(
        own.dataset,
        image_size=own.image_size,
        path=own.dataset_path,
        seed=own.data_seed,
        options=own.shapes.to_dict() if own.dataset == "shapes" else {},
    )
    print(dataset.summary())
    enough = own.batch_size <= len(dataset.train.images)
    check_field(config, "detection.batch_size", enough, f"must be at most {len(dataset.train.images)}, the images")
    start = handover.start(config, finished)
    recipe = make_recipe(config, start, len(dataset.class_names))
    count = len(dataset.train.images)
    learned = (dataset.train.labels >= 0) & (own.learn_difficult | ~dataset.train.difficult)

    def detect(state, data, indices):
        return train.detect(recipe, state, data["test_images"][indices])

    detector = PerExample(detect, len(dataset.test.images), config.eval_batch_size)

    def batch(data, step, key):
        del key  # whole epochs: their order must not change from step to step
        return sampler.batch_indices(rng.stream(data["seed"], "order"), step, count, own.batch_size)

    def evaluate(state, data):
        found = detector(state, data)
        return {"map_all": score(found, dataset, config, "all").mean}

    def finish(state, data, folder: Path) -> dict[str, float]:
        return report(detector(state, data), dataset, config, folder)

    return Experiment(
        data={
            "start": start.variables,
            "seed": np.uint32(config.seed),
            "images": dataset.train.images,
            "boxes": dataset.train.boxes,
            "labels": np.where(learned, dataset.train.labels, -1).astype(np.int32),
            "test_images": dataset.test.images,
        },
        init=functools.partial(train.init, recipe, own.image_size),
        train_step=functools.partial(train.train_step, recipe),
        batch=batch,
        batch_field="detection.batch_size",
        evaluate=evaluate,
        finish=finish,
    )


def make_recipe(config: ConfigDict, start: handover.Start, num_classes: int) -> train.Recipe:
    """The fixed part of a step."""
    own, encoder = config.detection, start.encoder
    cells, ups = own.image_size // own.stride, num_ups(encoder, own.stride) or 0
    levels, shapes = len(own.ssd.scales) - 1, 2 + 2 * len(own.ssd.ratios)

    def network(train: bool = False) -> Detector:
        if own.head == "ssd":
            head = SsdHead(num_classes, levels, shapes, own.head_channels)
        else:
            head = CenterNetHead(num_classes, own.head_channels)
        return Detector(encoder.module(train), Neck(ups, own.neck_channels, own.neck, own.neck_blocks, train), head)

    multibox = None
    if own.head == "ssd":
        anchors = ssd.make_anchors(level_sizes(cells, levels), own.ssd.scales, own.ssd.ratios)
        multibox = train.Ssd(jnp.asarray(anchors, jnp.float32), own.ssd.nms_threshold, own.ssd.candidates)
    return train.Recipe(
        network,
        optim.make_optimizer(own.optimizer),
        augment.Strength(own.flip, own.min_scale, own.max_scale, own.colour),
        num_classes,
        cells,
        own.gaussian_radius,
        own.size_weight,
        own.offset_weight,
        own.max_detections,
        multibox,
        start.mean,
        start.std,
    )


def score(
    found: centernet.Detections, dataset: datasets.DetectionData, config: ConfigDict, rule: str
) -> voc_ap.AveragePrecision:
    """AP of the test images, in the pixels of the pictures as they were before they were resized."""
    own, test = config.detection.voc, dataset.test
    pixels = np.tile(test.sizes, 2)[:, None].astype(np.float64)
    return voc_ap.evaluate(
        voc_ap.Detected(np.asarray(found.boxes) * pixels, np.asarray(found.scores), np.asarray(found.labels)),
        voc_ap.Objects(test.boxes * pixels, test.labels, test.difficult),
        len(dataset.class_names),
        rule=rule,
        threshold=own.iou_threshold,
        box_offset=own.box_offset,
        strict=own.strict,
        legacy_thresholds=own.legacy_thresholds,
    )


def report(
    found: centernet.Detections, dataset: datasets.DetectionData, config: ConfigDict, folder: Path
) -> dict[str, float]:
    """mAP by both rules, AP of each class that the test images hold, and the figures."""
    every, eleven = (score(found, dataset, config, rule) for rule in voc_ap.RULES)
    results = {"map_all": every.mean, "map_11": eleven.mean}
    for name, ap in zip(dataset.class_names, every.ap, strict=True):
        if not np.isnan(ap):
            results[f"ap_{name}"] = float(ap)
    if parallel.is_main():
        plots.training_curves(folder / "metrics.jsonl", folder / "figures" / "training.png")
        figures.detections(found, every.flags, dataset, folder / "figures" / "detections.png")
    return results
