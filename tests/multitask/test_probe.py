"""Linear probe, k-NN, pooling and the losses of metric learning: goldens and second implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from common.errors import UserError
from multitask import neighbours
from multitask.transfer import metric_losses, probe
from tests.multitask import golden

GOLDEN = golden.load("probe")
LOSSES = golden.load("metric_losses").mapped(jnp.asarray)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def standardised():
    standard = probe.standard(GOLDEN["train_x"])
    return standard, standard(GOLDEN["train_x"]), standard(GOLDEN["test_x"])


def test_probe_matches_the_golden():
    standard, train, test = standardised()
    np.testing.assert_allclose(standard.mean, GOLDEN["mean"], atol=1e-6)
    np.testing.assert_allclose(standard.std, GOLDEN["std"], atol=1e-6)
    found = probe.solve(train, GOLDEN["train_y"], 4, float(GOLDEN["l2"]))
    np.testing.assert_allclose(found.objective, GOLDEN["probe_objective"], atol=1e-6)
    assert GOLDEN["probe_grad_norm"] <= 1e-6  # both solvers are at the minimum
    assert found.gradient <= 1e-6
    assert GOLDEN["std_eps"] == probe.STD_EPSILON
    np.testing.assert_allclose(found.weights, GOLDEN["probe_w"], atol=1e-3)
    np.testing.assert_allclose(found.bias, GOLDEN["probe_b"], atol=1e-3)
    np.testing.assert_allclose(found.logits(test), GOLDEN["probe_test_logits"], atol=1e-3)
    assert probe.accuracy(found.logits(test), GOLDEN["test_y"]) == GOLDEN["probe_test_acc"]


def test_probe_equals_scikit_learn():
    _, train, test = standardised()
    l2 = 0.01
    theirs = LogisticRegression(C=1 / (l2 * len(train)), tol=1e-9, max_iter=1000).fit(train, GOLDEN["train_y"])
    ours = probe.solve(train, GOLDEN["train_y"], 4, l2)
    np.testing.assert_allclose(ours.logits(test) - ours.logits(test).mean(1, keepdims=True),
                               theirs.decision_function(test), atol=1e-3)  # fmt: skip


def test_l2_is_chosen_on_held_out_images_only():
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 60)
    rows = random.normal(size=(60, 80)) + np.eye(80)[0] * (4 * labels[:, None] - 2)
    assert probe.choose_l2(rows, labels, 2, (1e-5, 1.0), 0.3) == 1.0  # noise in 79 of 80 numbers
    assert probe.choose_l2(rows, labels, 2, (0.5,), 0.3) == 0.5


def test_knn_matches_the_golden_and_ignores_scale():
    train, test = jnp.asarray(GOLDEN["train_x"]), jnp.asarray(GOLDEN["test_x"])
    labels, k, temperature = GOLDEN["train_y"], int(GOLDEN["knn_k"]), float(GOLDEN["knn_temperature"])
    votes = neighbours.knn_scores(train, labels, test, 4, k, temperature)
    np.testing.assert_allclose(votes / votes.max(1, keepdims=True), GOLDEN["knn_scores_rel"], atol=1e-4)
    np.testing.assert_array_equal(votes.argmax(1), GOLDEN["knn_pred"])
    assert np.mean(votes.argmax(1) == GOLDEN["test_y"]) == GOLDEN["knn_acc"]
    scaled = neighbours.knn_scores(7 * train, labels, 0.1 * test, 4, k, temperature)
    np.testing.assert_allclose(scaled, votes, rtol=1e-3, atol=1e-6)
    every = neighbours.knn_scores(train, labels, test, 4, 1000, temperature)  # more than there are
    assert every.shape == votes.shape


def test_pooling_averages_cells_as_even_as_can_be():
    maps = jnp.arange(25.0).reshape(1, 5, 5, 1)
    np.testing.assert_allclose(probe.adaptive_average_pool(maps, 1), [[12.0]])
    found = probe.adaptive_average_pool(maps, 4).reshape(2, 2)  # cells 0..2 and 2..4 of each side
    np.testing.assert_allclose(found, [[6.0, 8.0], [16.0, 18.0]], rtol=1e-6)
    np.testing.assert_allclose(probe.adaptive_average_pool(maps, 100).reshape(5, 5), maps[0, :, :, 0])


def test_npair_loss_matches_the_golden():
    inputs = LOSSES["npair_anchor"], LOSSES["npair_positive"]

    def loss(anchors, positives):
        return metric_losses.npair(anchors, positives, float(LOSSES["npair_l2"]))

    value, gradients = jax.value_and_grad(loss, (0, 1))(*inputs)
    np.testing.assert_allclose(value, LOSSES["npair_loss"], **TOLERANCE)
    for ours, side in zip(gradients, ("anchor", "positive"), strict=True):
        np.testing.assert_allclose(ours, LOSSES[f"npair_grad_{side}"], **TOLERANCE)


def triplet(rows):
    return metric_losses.semi_hard_triplet(rows, LOSSES["trip_labels"], float(LOSSES["trip_margin"]))


def test_triplet_loss_matches_the_golden_and_the_definition():
    value, gradient = jax.value_and_grad(triplet)(LOSSES["trip_u"])
    np.testing.assert_allclose(value, LOSSES["trip_loss"], **TOLERANCE)
    np.testing.assert_allclose(gradient, LOSSES["trip_grad_u"], **TOLERANCE)
    rows, labels = np.asarray(LOSSES["trip_u"], np.float64), np.asarray(LOSSES["trip_labels"])
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    away, total, pairs = ((rows[:, None] - rows[None]) ** 2).sum(-1), 0.0, 0
    for a in range(len(rows)):
        for p in range(len(rows)):
            if a != p and labels[a] == labels[p]:
                others = away[a][labels != labels[a]]
                beyond = others[others > away[a, p]]
                total += max(0.0, 0.2 + away[a, p] - (beyond.min() if len(beyond) else others.max()))
                pairs += 1
    np.testing.assert_allclose(value, total / pairs, rtol=1e-4)


def test_triplet_loss_without_a_pair_is_zero():
    rows = jax.random.normal(jax.random.key(0), (4, 3))
    value, gradient = jax.value_and_grad(metric_losses.semi_hard_triplet)(rows, jnp.arange(4))
    assert value == 0
    assert jnp.all(gradient == 0)


def test_fewer_images_than_neighbours():
    with pytest.raises(UserError, match="5 nearest neighbours are asked for, but there are only 3 images"):
        neighbours.nearest(jnp.ones((2, 4)), jnp.ones((3, 4)), 5)
