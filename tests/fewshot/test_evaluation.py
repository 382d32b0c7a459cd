"""The evaluation protocol against the official formulas."""

import numpy as np
import pytest

from common.metrics import select_top
from fewshot.evaluation import AVERAGES, accuracy_report, ensemble_logits
from tests.fewshot import official


def test_ensemble_metrics_equal_official():
    data = official.golden("ensemble_metrics")
    selected = select_top(data["val_accuracy"], int(data["top_k"]))
    assert selected == data["selected"].tolist()
    report = accuracy_report(ensemble_logits(data["logits"][selected]), data["targets"])
    for name in ("accuracy", "ci95_per_query", "ci95_per_episode"):
        np.testing.assert_allclose(report[name], data[name], rtol=1e-12)
    best = accuracy_report(data["logits"][selected[0]].astype(np.float64), data["targets"])
    np.testing.assert_allclose(best["accuracy"], data["best_single_accuracy"], rtol=1e-12)
    by_probability = accuracy_report(ensemble_logits(data["logits"][selected], "probabilities"), data["targets"])
    np.testing.assert_allclose(by_probability["accuracy"], data["accuracy_probability_average"], rtol=1e-12)
    per_episode = (ensemble_logits(data["logits"][selected]).argmax(-1) == data["targets"]).mean(axis=1)
    np.testing.assert_allclose(per_episode, data["per_episode_accuracy"], rtol=1e-12)


def test_probabilities_are_averaged_as_probabilities():
    logits = np.random.default_rng(0).normal(size=(3, 4, 2, 5)) * 50
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(ensemble_logits(logits, "probabilities")), probabilities.mean(0), atol=1e-15)


@pytest.mark.parametrize("average", AVERAGES)
def test_ensemble_of_equal_models_predicts_the_same(average):
    logits = np.random.default_rng(0).normal(size=(4, 2, 5))
    together = ensemble_logits(np.stack([logits] * 3), average)
    np.testing.assert_array_equal(together.argmax(-1), logits.argmax(-1))


def test_unknown_average_names_what_is_accepted():
    with pytest.raises(ValueError, match=r"'votes'.*logits, probabilities"):
        ensemble_logits(np.zeros((2, 3, 5)), "votes")


def test_of_equal_accuracies_the_later_comes_first():
    assert select_top([0.5, 0.7, 0.7, 0.1, 0.5], 4) == [2, 1, 4, 0]
    assert select_top([0.5, 0.7], 5) == [1, 0]


def test_one_episode_has_no_interval_over_episodes():
    report = accuracy_report(np.eye(5)[None], np.array([[0, 1, 2, 3, 0]]))
    assert report["accuracy"] == 0.8
    assert np.isnan(report["ci95_per_episode"])
    assert report["ci95_per_query"] == pytest.approx(1.96 * np.sqrt(0.8 * 0.2 / 5))
