"""k-means, NMI, pairwise F1, Recall@K: goldens, definitions written a second time, scikit-learn, invariants."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.cluster
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from multitask import clustering_metrics as metrics
from multitask import kmeans, neighbours
from tests.multitask import golden

GOLDEN = golden.load("clustering_metrics")


def test_contingency_nmi_and_pairs_match_the_golden():
    labels, clusters = GOLDEN["labels"], GOLDEN["pred"]
    table = metrics.contingency(labels, clusters)
    np.testing.assert_array_equal(table, GOLDEN["contingency"])
    np.testing.assert_allclose(metrics.mutual_information(table), GOLDEN["mutual_info"], rtol=1e-12)
    np.testing.assert_allclose(metrics.entropy(table.sum(1)), GOLDEN["entropy_true"], rtol=1e-12)
    np.testing.assert_allclose(metrics.entropy(table.sum(0)), GOLDEN["entropy_pred"], rtol=1e-12)
    for kind in metrics.NORMALISATIONS:
        np.testing.assert_allclose(metrics.nmi(labels, clusters, kind), GOLDEN[f"nmi_{kind}"], rtol=1e-12)
    pairs = metrics.pairwise_f1(labels, clusters)
    np.testing.assert_allclose(pairs, [GOLDEN[f"pair_{name}"] for name in ("precision", "recall", "f1")], rtol=1e-12)


@pytest.mark.parametrize("metric", neighbours.METRICS)
def test_recall_and_neighbours_match_the_golden(metric):
    rows, labels = jnp.asarray(GOLDEN["emb"]), GOLDEN["labels"]
    found = neighbours.recall_at_k(rows, labels, GOLDEN["recall_ks"].tolist(), metric)
    np.testing.assert_array_equal([found[k] for k in GOLDEN["recall_ks"]], GOLDEN[f"recall_{metric}"])
    _, places = neighbours.nearest(rows, rows, 8, metric=metric, exclude_self=True)
    # Rows 3 and 5 are duplicates: one stands for the other.
    same = {5: 3}
    for ours, theirs in zip(places, GOLDEN[f"neighbours_{metric}"], strict=True):
        assert sorted(same.get(i, i) for i in ours) == sorted(same.get(i, i) for i in theirs)


@pytest.mark.parametrize(("rule", "prefix"), [("keep", "kmeans_keep"), ("farthest", "kmeans_far")])
def test_kmeans_matches_the_golden_at_every_iteration(rule, prefix):
    rows, centroids = jnp.asarray(GOLDEN["emb"]), jnp.asarray(GOLDEN["kmeans_init"])
    for step in range(len(GOLDEN[f"{prefix}_inertia"])):
        found = kmeans.lloyd_step(rows, centroids, rule)
        centroids = found.centroids
        np.testing.assert_array_equal(found.assignments, GOLDEN[f"{prefix}_assign"][step])
        np.testing.assert_allclose(centroids, GOLDEN[f"{prefix}_centroids"][step], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.inertia, GOLDEN[f"{prefix}_inertia"][step], rtol=1e-5)
    whole = kmeans.lloyd(rows, jnp.asarray(GOLDEN["kmeans_init"]), 100, rule)
    np.testing.assert_array_equal(whole.assignments, GOLDEN[f"{prefix}_assign"][-1])


def slow_nmi(labels, clusters):
    n, information = len(labels), 0.0
    for u, v in itertools.product(set(labels), set(clusters)):
        both = sum(a == u and b == v for a, b in zip(labels, clusters, strict=True)) / n
        if both:
            information += both * np.log(both / (np.mean(labels == u) * np.mean(clusters == v)))

    def entropy(values):
        return -sum(np.mean(values == u) * np.log(np.mean(values == u)) for u in set(values))

    return 2 * information / (entropy(labels) + entropy(clusters))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=40))
def test_nmi_and_f1_equal_scikit_learn_and_the_definition(pairs):
    labels, clusters = np.array(pairs).T
    for kind in metrics.NORMALISATIONS:
        theirs = sklearn.metrics.normalized_mutual_info_score(labels, clusters, average_method=kind)
        np.testing.assert_allclose(metrics.nmi(labels, clusters, kind), theirs, atol=1e-9)
        np.testing.assert_allclose(metrics.nmi(clusters, labels, kind), metrics.nmi(labels, clusters, kind), atol=1e-12)
    if len(set(labels)) > 1 and len(set(clusters)) > 1:
        np.testing.assert_allclose(metrics.nmi(labels, clusters), slow_nmi(labels, clusters), atol=1e-9)
    assert metrics.nmi(labels, 7 - labels) == pytest.approx(1.0)
    (_, wrong), (missed, right) = sklearn.metrics.pair_confusion_matrix(labels, clusters)
    found = metrics.pairwise_f1(labels, clusters)
    np.testing.assert_allclose(found.precision, right / max(wrong + right, 1))
    np.testing.assert_allclose(found.recall, right / max(missed + right, 1))


def slow_recall(rows, labels, k, metric):
    hits = 0
    for i, row in enumerate(rows):
        if metric == "cosine":
            away = [1 - row @ other / np.linalg.norm(row) / np.linalg.norm(other) for other in rows]
        else:
            away = [np.linalg.norm(row - other) for other in rows]
        others = [j for j in np.argsort(away, kind="stable") if j != i][:k]
        hits += any(labels[j] == labels[i] for j in others)
    return hits / len(rows)


@pytest.mark.parametrize("metric", neighbours.METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_recall_equals_the_definition_and_never_falls_with_k(metric, seed):
    random = np.random.default_rng(seed)
    rows, labels = random.normal(size=(50, 5)).astype(np.float32), random.integers(0, 8, 50)
    ks = [1, 2, 4, 8, 49]
    found = neighbours.recall_at_k(jnp.asarray(rows), labels, ks, metric)
    for k in ks:
        assert found[k] == slow_recall(rows.astype(np.float64), labels, k, metric)
    assert list(found.values()) == sorted(found.values())


def test_a_duplicate_is_a_neighbour_and_a_class_of_one_is_a_miss():
    rows = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert neighbours.recall_at_k(rows, np.array([0, 0, 1]), [1]) == {1: pytest.approx(2 / 3)}
    assert neighbours.recall_at_k(rows, np.array([0, 1, 2]), [1, 2]) == {1: 0.0, 2: 0.0}


def test_neighbours_are_the_same_in_blocks(monkeypatch):
    rows = jax.random.normal(jax.random.key(0), (40, 6))
    whole = neighbours.nearest(rows, rows, 5, exclude_self=True)
    monkeypatch.setattr(neighbours, "_BLOCK", 16)
    parts = neighbours.nearest(rows, rows, 5, exclude_self=True)
    np.testing.assert_array_equal(whole[1], parts[1])
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-5)
    with pytest.raises(UserError, match="40 nearest neighbours are asked for, but there are only 39"):
        neighbours.nearest(rows, rows, 40, exclude_self=True)


def test_kmeans_finds_separate_groups_and_equals_scikit_learn():
    random = np.random.default_rng(0)
    middle = random.normal(size=(6, 4)) * 10
    truth = np.repeat(np.arange(6), 20)
    rows = (middle[truth] + random.normal(size=(120, 4))).astype(np.float32)
    found = kmeans.kmeans(jax.random.key(0), jnp.asarray(rows), 6, restarts=5)
    assert metrics.nmi(truth, np.asarray(found.assignments)) == pytest.approx(1.0)
    theirs = sklearn.cluster.KMeans(6, n_init=5, random_state=0).fit(rows)
    np.testing.assert_allclose(found.inertia, theirs.inertia_, rtol=1e-4)
    again = kmeans.kmeans(jax.random.key(0), jnp.asarray(rows), 6, restarts=5)
    np.testing.assert_array_equal(found.assignments, again.assignments)


def test_kmeans_with_as_many_clusters_as_images_or_equal_images():
    rows = jnp.arange(10.0).reshape(5, 2)
    found = kmeans.kmeans(jax.random.key(1), rows, 5)
    assert float(found.inertia) == 0
    assert sorted(found.assignments.tolist()) == [0, 1, 2, 3, 4]
    equal = kmeans.kmeans(jax.random.key(1), jnp.ones((5, 2)), 3, empty="farthest")
    assert np.isfinite(equal.centroids).all()
    with pytest.raises(UserError, match="k-means cannot make 6 clusters of 5 images"):
        kmeans.kmeans(jax.random.key(1), rows, 6)
