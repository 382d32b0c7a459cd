"""Temporal ensembles against the golden arrays, and their fixed points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multitask import temporal_ensemble as ensemble
from multitask.metric_regularizer import norm
from tests.multitask import golden

ARRAYS = golden.load("temporal_ensemble")
ALPHA = float(ARRAYS["alpha"])
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.mark.parametrize("bias_correction", ["warmup", "debias"])
def test_moving_average_of_weights(bias_correction):
    theta = jnp.asarray(ARRAYS["theta"])
    average = jnp.zeros(6)
    for t in range(1, 26):
        teacher = ensemble.param_ema(average, theta[t - 1], ALPHA, t, bias_correction)
        average = teacher.average
        if bias_correction == "warmup":
            np.testing.assert_allclose(ensemble.warmup_decay(ALPHA, t), ARRAYS["warm_alpha"][t - 1], **CLOSE)
            np.testing.assert_allclose(teacher.weights, ARRAYS["warm_ema"][t - 1], **CLOSE)
            if t <= 10:  # 1 / (1 - 0.9)
                np.testing.assert_allclose(teacher.weights, theta[:t].mean(0), **CLOSE)
        else:
            np.testing.assert_allclose(average, ARRAYS["debias_m"][t - 1], **CLOSE)
            np.testing.assert_allclose(teacher.weights, ARRAYS["debias_ema"][t - 1], **CLOSE)


def test_debiasing_keeps_its_digits():
    found = ensemble.debiased(jnp.full(1, 1e-4), 0.9999, 1)
    np.testing.assert_allclose(found, 1.0, rtol=2e-4)  # 1 - 0.9999 in float32 is off by that
    exact = -np.expm1(3 * np.log(np.float64(np.float32(0.9999))))
    np.testing.assert_allclose(1 / ensemble.debiased(jnp.ones(1), 0.9999, 3), exact, rtol=1e-6)


def test_feature_memory():
    features, updated = jnp.asarray(ARRAYS["mem_feats"]), jnp.asarray(ARRAYS["mem_update"])
    weights = jnp.full(3, 1 / 3)
    memory = ensemble.feature_memory_init(10, 3, 5)
    for t, images in enumerate(jnp.asarray(ARRAYS["mem_idx"])):
        rows = jax.tree.map(lambda leaf, images=images: leaf[images], memory)
        target = ensemble.feature_memory_read(rows, ALPHA, weights)  # before the write
        np.testing.assert_allclose(target.anchors, ARRAYS["mem_target_before"][t], **CLOSE)
        np.testing.assert_array_equal(target.valid, ARRAYS["mem_target_valid"][t])
        memory = ensemble.feature_memory_update(memory, images, norm(features[t]), ALPHA, updated[t])
    np.testing.assert_allclose(memory.features, ARRAYS["mem_final"], **CLOSE)
    np.testing.assert_array_equal(memory.counts, ARRAYS["mem_count"])
    np.testing.assert_allclose(ensemble.corrected(memory, ALPHA), ARRAYS["mem_corrected"], **CLOSE)
    read = ensemble.feature_memory_read(memory, ALPHA, weights)
    np.testing.assert_allclose(read.anchors, ARRAYS["mem_ensemble"], **CLOSE)
    np.testing.assert_array_equal(read.valid, ARRAYS["mem_valid"])


@pytest.mark.parametrize("order", ensemble.ORDERS)
def test_task_snapshots(order, float64):
    """On quadratic losses, whose gradient is A (theta - c)."""
    matrices, centres, weights = (jnp.asarray(ARRAYS[name], float) for name in ("snap_A", "snap_c", "snap_weights"))
    theta, rate, alpha = (jnp.asarray(ARRAYS[f"snap_{name}"], float) for name in ("theta0", "lr", "alpha"))
    matrices = (matrices + matrices.swapaxes(1, 2)) / 2
    for cycle in range(5):
        snapshots, running = [], theta
        for task in range(3):
            running = theta if order == "parallel" else running
            for _ in range(int(ARRAYS["snap_inner"])):
                running = running - rate * matrices[task] @ (running - centres[task])
            snapshots.append(running)
        if order == "parallel":
            np.testing.assert_allclose(jnp.stack(snapshots), ARRAYS["snap_parallel_tasks"][cycle], **CLOSE)
        theta = ensemble.snapshot_average(theta, snapshots, weights, alpha)
        np.testing.assert_allclose(theta, ARRAYS[f"snap_{order}"][cycle], **CLOSE)


def test_constant_weights_are_a_fixed_point():
    theta = jnp.arange(3.0)
    for correction in ensemble.BIAS_CORRECTIONS:
        average = theta if correction == "warmup" else jnp.zeros(3)
        for t in range(1, 5):
            teacher = ensemble.param_ema(average, theta, 0.9, t, correction)
            average = teacher.average
            np.testing.assert_allclose(teacher.weights, theta, rtol=1e-6)
    shared = ensemble.snapshot_average(theta, [theta, theta], jnp.array([0.25, 0.75]), 0.5)
    np.testing.assert_allclose(shared, theta, rtol=1e-6)
    z, memory = norm(jnp.ones((1, 2, 4))), ensemble.feature_memory_init(1, 2, 4)
    for _ in range(3):
        memory = ensemble.feature_memory_update(memory, jnp.zeros(1, int), z, 0.6)
        read = ensemble.feature_memory_read(memory, 0.6, jnp.full(2, 0.5))
        np.testing.assert_allclose(read.anchors, z[:, 0], rtol=1e-6)
