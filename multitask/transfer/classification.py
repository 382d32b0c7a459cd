"""Target task: classification, by a linear probe and k-NN on frozen features, and by fine-tuning."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from common import parallel, plots, rng, sampler
from common.config import check as check_field
from common.config import check_choice, check_positive
from common.data import classification as datasets
from common.data.dataset import Dataset, Split
from common.evaluation import PerExample
from common.experiment import Experiment, TrainState
from common.metrics import ci95_proportion
from multitask import handover, neighbours
from multitask.models import LAYERS
from multitask.transfer import finetuning, probe
from multitask.transfer.features import extractor
from multitask.transfer.phase import loop_fields

SOLVERS = ("lbfgs", "sgd")


def overrides(config: ConfigDict) -> dict[str, Any]:
    """Fields of the loop in this phase."""
    return loop_fields(config.classification, len(rounds(config)) * config.classification.finetune.num_steps)


def rounds(config: ConfigDict) -> list[finetuning.Round]:
    """All trainings of this phase, one after the other."""
    own = config.classification
    # The rate of the probe is for a batch of 256.
    frozen_rate = own.probe.learning_rate * own.batch_size / 256 if own.probe.solver == "sgd" else 0.0
    return finetuning.plan(own.finetune.fractions, own.finetune.learning_rates, frozen_rate)


def check(config: ConfigDict) -> None:
    """Raise UserError for fields that cannot work, alone or together."""
    own = config.classification
    check_choice(config, "classification.probe.solver", SOLVERS)
    check_choice(config, "classification.probe.layer", ("pooled", *LAYERS))
    names = ("knn.k", "knn.temperature", "batch_size", "finetune.num_steps", "probe.iterations", "probe.learning_rate")
    check_positive(config, *(f"classification.{name}" for name in (*names, "probe.most_features", "probe.fold_size")))
    for field, values in (("probe.l2", own.probe.l2), ("finetune.learning_rates", own.finetune.learning_rates)):
        given = bool(values) and min(values) > 0
        check_field(config, f"classification.{field}", given, "must be one or more numbers above 0")
    fits = all(0 < fraction <= 1 for fraction in own.finetune.fractions)
    check_field(
        config, "classification.finetune.fractions", fits, "must be shares of the labels, above 0 and at most 1"
    )
    check_field(config, "classification.probe.folds", own.probe.folds >= 0, "must not be negative")
    below = 0 < own.held_out_share < 1
    check_field(config, "classification.held_out_share", below, "must lie between 0 and 1")
    check_field(config, "classification.padding", own.padding >= 0, "must not be negative")
    within = own.padding < config.image_size
    check_field(config, "classification.padding", within, f"must be below config.image_size, {config.image_size}")
    pooled = own.probe.solver == "lbfgs" or own.probe.layer == "pooled"
    check_field(config, "classification.probe.layer", pooled, "must be 'pooled' where config...probe.solver is 'sgd'")


def build(config: ConfigDict, finished: Mapping[str, TrainState]) -> Experiment:
    """The experiment of this phase; raises UserError on what cannot work."""
    check(config)
    own = config.classification
    dataset = datasets.load_dataset(config)
    train, test = dataset.splits["train"], dataset.splits["test"]
    enough = own.batch_size <= len(train.labels)
    check_field(config, "classification.batch_size", enough, f"must be at most {len(train.labels)}, the images")
    start = handover.start(config, finished, dataset)
    recipe = finetuning.Recipe(
        encoder=start.encoder,
        num_classes=dataset.num_classes,
        rounds=rounds(config),
        num_steps=own.finetune.num_steps,
        weight_decay=own.finetune.weight_decay,
        momentum=own.finetune.momentum,
        flip=own.flip,
        padding=own.padding,
        mean=start.mean,
        std=start.std,
    )
    places = finetuning.choose_places(recipe.rounds, train, own.held_out_share, config.seed)
    judge = _Judge(recipe, places, len(train.labels), len(test.labels), config.eval_batch_size)
    frozen = Frozen(start, dataset, config)

    def batch(data, step, key):
        del key  # whole epochs: their order must not change from step to step
        order = rng.stream(data["seed"], "order")
        indices = sampler.batch_indices(order, step % recipe.num_steps, len(train.labels), own.batch_size)
        return data["places"][step // recipe.num_steps][indices]

    def refresh(state, data, step, key):
        place = step // recipe.num_steps
        return finetuning.next_round(recipe, state, data, place, judge(state, data, place - 1) if place else 0.0, key)

    def evaluate(state, data):
        if not recipe.rounds:
            return {"knn_accuracy": frozen.knn(data)}
        return {"test_accuracy": judge.tested(state, data)}

    def finish(state, data, folder: Path) -> dict[str, float]:
        if recipe.rounds and parallel.is_main():
            plots.training_curves(folder / "metrics.jsonl", folder / "figures" / "training.png")
        return frozen.results(data) | fine_tuned(recipe, judge.all(state, data), len(test.labels))

    step = functools.partial(finetuning.train_step, recipe)
    probing = sum(one.frozen for one in recipe.rounds) * recipe.num_steps
    tuned = functools.partial(step, False)
    return Experiment(
        data={
            "start": start.variables,
            "seed": np.uint32(config.seed),
            "places": places.train,
            "images": train.images,
            "labels": train.labels,
            "test_images": test.images,
            "test_labels": test.labels,
        },
        init=functools.partial(finetuning.init, recipe),
        train_step={0: functools.partial(step, True), probing: tuned} if probing else tuned,
        batch=batch,
        batch_field="classification.batch_size",
        refresh=refresh,
        refresh_every=recipe.num_steps,
        evaluate=evaluate,
        finish=finish,
    )


class _Judge:
    """Accuracy of a round: on the images that it left out, or on the test images."""

    def __init__(self, recipe: finetuning.Recipe, places: finetuning.Places, train: int, test: int, batch_size: int):
        self.recipe, self.places = recipe, places
        self._train = PerExample(self._function(""), train, batch_size)
        self._test = PerExample(self._function("test_"), test, batch_size)

    def _function(self, split: str) -> Any:
        return lambda state, data, indices: finetuning.is_right(self.recipe, state, data, split, indices)

    def __call__(self, state: TrainState, data: Any, place: int) -> float:
        if not self.recipe.rounds[place].search:
            return self.tested(state, data)
        return float(self._train(state, data)[self.places.held_out[place]].mean(dtype=np.float64))

    def tested(self, state: TrainState, data: Any) -> float:
        return float(self._test(state, data).mean(dtype=np.float64))

    def all(self, state: TrainState, data: Any) -> list[float]:
        """Of every round, when the last one has ended."""
        found = np.asarray(state.model_state["accuracies"]).tolist()[: len(self.recipe.rounds)]
        return [*found[:-1], self(state, data, len(found) - 1)] if found else []


class Frozen:
    """What frozen features can do: k-NN and the linear probe."""

    def __init__(self, start: handover.Start, dataset: Dataset, config: ConfigDict):
        self.own, self.seed = config.classification, config.seed
        self.train, self.test = (dataset.splits[split] for split in ("train", "test"))
        counts = {"images": len(self.train.labels), "test_images": len(self.test.labels)}
        self._of = {
            layer: [
                extractor(start, layer, self.own.probe.most_features, split, count, config.eval_batch_size)
                for split, count in counts.items()
            ]
            for layer in {"pooled", self.own.probe.layer}
        }

    def features(self, data: Any, layer: str) -> list[np.ndarray]:
        """Of the training and of the test images."""
        return [split(data["start"], data) for split in self._of[layer]]

    def knn(self, data: Any) -> float:
        """Test accuracy of the k nearest training images."""
        train, test = (jnp.asarray(rows) for rows in self.features(data, "pooled"))
        knn = self.own.knn
        votes = neighbours.knn_scores(train, self.train.labels, test, self.train.num_classes, knn.k, knn.temperature)
        return probe.accuracy(votes, self.test.labels)

    def results(self, data: Any) -> dict[str, float]:
        """k-NN and, unless SGD does it, the probe: on all training images, and on folds if there are any."""
        results = {"knn_accuracy": self.knn(data)}
        if self.own.probe.solver == "sgd":
            return results
        features = self.features(data, self.own.probe.layer)
        accuracy, l2 = self.probe(features, np.arange(len(self.train.labels)))
        results |= {"probe_accuracy": accuracy, "probe_l2": l2}
        results["probe_accuracy_ci95"] = ci95_proportion(accuracy, len(self.test.labels))
        folds = [
            self.probe(features, fold)[0]
            for fold in make_folds(self.train, self.own.probe.folds, self.own.probe.fold_size)
        ]
        if folds:
            results |= {
                "probe_accuracy_folds_mean": float(np.mean(folds)),
                "probe_accuracy_folds_std": float(np.std(folds)),
            }
        return results

    def probe(self, features: list[np.ndarray], places: np.ndarray) -> tuple[float, float]:
        """Test accuracy and l2 of the probe that is solved on these training images."""
        own, (train, test) = self.own, features
        labels, num_classes = self.train.labels[places], self.train.num_classes
        standard = probe.standard(train[places])
        rows = standard(train[places])
        l2 = probe.choose_l2(rows, labels, num_classes, own.probe.l2, own.held_out_share, own.probe.iterations)
        found = probe.solve(rows, labels, num_classes, l2, own.probe.iterations)
        return probe.accuracy(found.logits(standard(test)), self.test.labels), l2


def make_folds(train: Split, folds: int, fold_size: int) -> list[np.ndarray]:
    """Class-balanced parts of the training images, fixed once and for all; tensorflow-datasets does not carry STL-10's
    official ones."""
    return [datasets.few_places(train, fold_size / len(train.labels), fold) for fold in range(folds)]


def fine_tuned(recipe: finetuning.Recipe, accuracies: list[float], test_images: int) -> dict[str, float]:
    """Results of the rounds that count; their fraction in percent is part of the name."""
    results = {}
    for place, (one, accuracy) in enumerate(zip(recipe.rounds, accuracies, strict=True)):
        if one.search:
            continue
        name = "probe_accuracy" if one.frozen else f"finetune_accuracy_{100 * one.fraction:g}"
        results |= {name: accuracy, f"{name}_ci95": ci95_proportion(accuracy, test_images)}
        if not one.rate:
            results[f"{name}_rate"] = finetuning.best_rate(recipe.rounds, np.array(accuracies), place)
    return results
