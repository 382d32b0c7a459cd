import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from common import metrics


def test_means_of_batches_equal_the_mean_of_all_examples():
    values = np.arange(10, dtype=np.float32) ** 2
    padded = np.concatenate([values, [np.nan, np.nan]]).astype(np.float32).reshape(3, 4)
    mask = (np.arange(12) < 10).reshape(3, 4)

    def step(batch, weights):
        return {"loss": metrics.weighted(batch, weights), "ones": metrics.weighted(weights, weights)}

    parts = [jax.jit(step)(jnp.asarray(a), jnp.asarray(b, jnp.float32)) for a, b in zip(padded, mask, strict=True)]
    sums = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    assert metrics.means(sums) == {"loss": pytest.approx(float(values.mean())), "ones": 1.0}
    assert sums["loss"][1] == 10


def test_mean_of_nothing_is_nan():
    result = metrics.means({"loss": (jnp.zeros(()), jnp.zeros(()))})
    assert math.isnan(result["loss"])
    assert isinstance(result["loss"], float)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
def test_weighted_takes_masks_of_any_kind_and_half_precision_values(dtype):
    total, count = metrics.weighted(jnp.asarray([1.0, 2.0, jnp.inf], jnp.bfloat16), jnp.asarray([1, 1, 0], dtype))
    assert (float(total), float(count)) == (3.0, 2.0)
    assert total.dtype == count.dtype == jnp.float32


def test_weighted_has_no_nan_gradient_through_masked_values():
    gradient = jax.grad(lambda x: metrics.weighted(jnp.sqrt(x), jnp.asarray([1.0, 0.0]))[0])(jnp.asarray([4.0, 1.0]))
    np.testing.assert_allclose(gradient, [0.25, 0.0])


def test_student_interval_matches_scipy():
    values = [0.62, 0.58, 0.61, 0.64, 0.60]
    mean, half = metrics.mean_ci95(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (mean - half, mean + half) == (pytest.approx(low), pytest.approx(high))
    assert metrics.mean_ci95([1.0, 2.0, 3.0])[1] == pytest.approx(4.302653 / math.sqrt(3))


def test_one_value_has_no_interval():
    assert metrics.mean_ci95([0.5])[0] == 0.5
    assert math.isnan(metrics.mean_ci95([0.5])[1])
    assert math.isnan(metrics.ci95_normal([0.5]))


def test_normal_interval_covers_about_95_percent():
    samples = np.random.RandomState(0).normal(3.0, 2.0, (2000, 50))
    covered = [abs(row.mean() - 3.0) < metrics.ci95_normal(row) for row in samples]
    assert 0.92 < np.mean(covered) < 0.96
    assert metrics.ci95_normal([1.0, 3.0]) == pytest.approx(1.96 * math.sqrt(2.0) / math.sqrt(2.0))


def test_proportion_interval():
    assert metrics.ci95_proportion(0.5, 100) == pytest.approx(0.098)
    assert metrics.ci95_proportion(1.0, 100) == 0.0


@pytest.mark.parametrize(("p", "n"), [(1.1, 10), (-0.1, 10), (0.5, 0), (float("nan"), 3)])
def test_impossible_proportion(p, n):
    with pytest.raises(ValueError, match="impossible"):
        metrics.ci95_proportion(p, n)


def test_pairs_remove_what_both_share():
    shared = np.random.RandomState(1).normal(0, 10, 8)
    better, worse = shared + 1.0 + 0.01 * np.arange(8), shared
    mean, half = metrics.paired_difference_ci95(better, worse)
    assert mean == pytest.approx(1.035)
    assert half < 0.05 < metrics.mean_ci95(better)[1]
    with pytest.raises(ValueError, match="8 and 7"):
        metrics.paired_difference_ci95(better, worse[:-1])


@pytest.mark.parametrize("values", [[], np.zeros((2, 2))])
def test_interval_of_no_list(values):
    with pytest.raises(ValueError, match="at least one value"):
        metrics.mean_ci95(values)
