"""Target task: clustering and retrieval of classes that were never learned, by frozen features (zero-shot) and by an
embedding fine-tuned with a metric loss on other classes."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from common import parallel, plots, rng
from common.augment import normalize
from common.config import check as check_field
from common.config import check_choice, check_positive
from common.data import retrieval
from common.data.dataset import Split
from common.evaluation import PerExample
from common.experiment import Experiment, TrainState
from multitask import clustering_metrics, handover, kmeans, neighbours
from multitask.metric_regularizer import norm
from multitask.transfer import figures, metric_learning
from multitask.transfer.metric_losses import LOSSES
from multitask.transfer.phase import loop_fields

_ROW = 7  # neighbours shown of a query


def overrides(config: ConfigDict) -> dict[str, Any]:
    """Fields of the loop in this phase."""
    return loop_fields(config.clustering, config.clustering.num_steps)


def check(config: ConfigDict) -> None:
    """Raise UserError for fields that cannot work, alone or together."""
    own = config.clustering
    check_choice(config, "clustering.dataset", retrieval.names())
    check_choice(config, "clustering.loss", LOSSES)
    check_choice(config, "clustering.metric", neighbours.METRICS)
    check_choice(config, "clustering.kmeans.empty", kmeans.EMPTY_RULES)
    names = ("stored_size", "image_size", "embedding_dim", "batch_size", "learning_rate", "new_layer_factor")
    more = ("kmeans.iterations", "kmeans.n_init", "kmeans.seeds")
    check_positive(config, *(f"clustering.{name}" for name in (*names, *more)))
    check_field(config, "clustering.num_steps", own.num_steps >= 0, "must not be negative")
    within = own.stored_size >= own.image_size
    check_field(config, "clustering.stored_size", within, f"must be at least clustering.image_size, {own.image_size}")
    check_field(config, "clustering.min_area", 0 < own.min_area <= 1, "must be above 0 and at most 1")
    ks = own.recall_ks
    check_field(config, "clustering.recall_ks", bool(ks) and min(ks) >= 1, "must be one or more numbers above 0")
    pairs = own.images_per_class == 2 if own.loss == "npair" else own.images_per_class >= 2
    accepted = "must be 2 with the N-pair loss, and at least 2 with triplets"
    check_field(config, "clustering.images_per_class", pairs, accepted)
    whole = own.batch_size % own.images_per_class == 0 and own.batch_size > own.images_per_class
    accepted = f"must be a multiple of clustering.images_per_class, {own.images_per_class}, and more than one class"
    check_field(config, "clustering.batch_size", whole, accepted)


def build(config: ConfigDict, finished: Mapping[str, TrainState]) -> Experiment:
    """The experiment of this phase; raises UserError on what cannot work."""
    check(config)
    own = config.clustering
    options = own.glyphs.to_dict() if own.dataset == "glyphs" else {}
    dataset = retrieval.load(own.dataset, image_size=own.stored_size, path=own.dataset_path, options=options)
    train, test = dataset.train, dataset.test
    print(
        f"{dataset.name} ({dataset.source}): {train.num_classes} classes, {len(train.labels)} images to learn from; "
        f"{test.num_classes} other classes, {len(test.labels)} images to cluster."
    )
    fewest = len(test.labels) > max(own.recall_ks)
    check_field(config, "clustering.recall_ks", fewest, f"must be below {len(test.labels)}, the test images")
    places = metric_learning.find_classes(train, own.images_per_class if own.num_steps else 0)
    enough = own.batch_size <= own.images_per_class * train.num_classes
    most = own.images_per_class * train.num_classes
    check_field(
        config, "clustering.batch_size", enough or not own.num_steps, f"must be at most {most}, for its classes"
    )
    start = handover.start(config, finished)
    recipe = make_recipe(config, start)

    def zero_shot(variables: Any, data: Any, indices: Array) -> Float[Array, "B c"]:
        images = normalize(metric_learning.middle(data["test_images"][indices], own.image_size), start.mean, start.std)
        return handover.frozen_features(start.encoder, variables, images)["pooled"]

    def fine_tuned(state: TrainState, data: Any, indices: Array) -> Float[Array, "B d"]:
        return metric_learning.embed(recipe, state, data["test_images"][indices])

    frozen, tuned = (PerExample(one, len(test.labels), config.eval_batch_size) for one in (zero_shot, fine_tuned))

    def batch(data, step, key):
        del step
        return metric_learning.sample(key, data["places"], own.batch_size, own.images_per_class)

    def rows_of(state, data):
        return tuned(state, data) if own.num_steps else frozen(data["start"], data)

    def evaluate(state, data):
        found = neighbours.recall_at_k(jnp.asarray(rows_of(state, data)), test.labels, own.recall_ks, own.metric)
        return {f"recall_at_{k}": value for k, value in found.items()}

    def finish(state, data, folder: Path) -> dict[str, float]:
        results = report(frozen(data["start"], data), test, config, "zero_shot", folder)
        if own.num_steps:
            if parallel.is_main():
                plots.training_curves(folder / "metrics.jsonl", folder / "figures" / "training.png")
            results |= report(tuned(state, data), test, config, "fine_tuned", folder)
        return results

    return Experiment(
        data={
            "start": start.variables,
            "images": train.images,
            "places": places,
            "test_images": test.images,
        },
        init=functools.partial(metric_learning.init, recipe),
        train_step=functools.partial(metric_learning.train_step, recipe),
        batch=batch,
        batch_field="clustering.batch_size",
        evaluate=evaluate,
        finish=finish,
    )


def make_recipe(config: ConfigDict, start: handover.Start) -> metric_learning.Recipe:
    """The fixed part of a step."""
    own = config.clustering
    return metric_learning.Recipe(
        encoder=start.encoder,
        optimizer=metric_learning.make_optimizer(own.learning_rate, own.new_layer_factor),
        embedding_dim=own.embedding_dim,
        loss=own.loss,
        l2=own.l2,
        margin=own.margin,
        images_per_class=own.images_per_class,
        image_size=own.image_size,
        min_area=own.min_area,
        flip=own.flip,
        mean=start.mean,
        std=start.std,
    )


def report(
    rows: Float[np.ndarray, "n d"], test: Split, config: ConfigDict, protocol: str, folder: Path
) -> dict[str, float]:
    """Recall@K, and the mean and spread over several seeds of what k-means finds; a figure of some queries."""
    own = config.clustering
    unit = norm(jnp.asarray(rows))
    recall = neighbours.recall_at_k(jnp.asarray(rows), test.labels, own.recall_ks, own.metric)
    results = {f"{protocol}_recall_at_{k}": value for k, value in recall.items()}
    spread = cluster_scores(unit, test, config)
    for name, values in spread.items():
        results |= {f"{protocol}_{name}": float(np.mean(values)), f"{protocol}_{name}_std": float(np.std(values))}
    if parallel.is_main():
        shown = min(_ROW, len(test.labels) - 1)
        _, places = neighbours.nearest(
            jnp.asarray(rows), jnp.asarray(rows), shown, metric=own.metric, exclude_self=True
        )
        path = folder / "figures" / f"{protocol}_retrieval.png"
        figures.retrieval_rows(test.images, test.labels, test.class_names, places, path)
    return results


def cluster_scores(unit: Float[Array, "n d"], test: Split, config: ConfigDict) -> dict[str, list[float]]:
    """NMI (arithmetic and geometric) and pairwise F1 of k-means with as many clusters as classes, for each seed."""
    own = config.clustering.kmeans
    clusters = len(np.unique(test.labels))
    found: dict[str, list[float]] = {"nmi": [], "nmi_geometric": [], "pairwise_f1": []}
    for seed in range(own.seeds):
        key = jax.random.fold_in(rng.stream(config.seed, "kmeans"), seed)
        best = kmeans.kmeans(key, unit, clusters, iterations=own.iterations, restarts=own.n_init, empty=own.empty)
        assigned = np.asarray(best.assignments)
        found["nmi"].append(clustering_metrics.nmi(test.labels, assigned))
        found["nmi_geometric"].append(clustering_metrics.nmi(test.labels, assigned, "geometric"))
        found["pairwise_f1"].append(clustering_metrics.pairwise_f1(test.labels, assigned).f1)
    return found
