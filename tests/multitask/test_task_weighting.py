"""Weights of losses and surgery of gradients against the golden arrays."""

import jax
import jax.numpy as jnp
import numpy as np

from multitask import task_weighting
from tests.multitask import golden

ARRAYS = golden.load("weighting")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def test_dynamic_weight_average():
    history = jnp.asarray(ARRAYS["dwa_history"])
    temperature = float(ARRAYS["dwa_temperature"])
    for epoch, expected in enumerate(ARRAYS["dwa_weights"]):
        found = task_weighting.dynamic_weight_average(history[epoch - 1], history[epoch - 2], epoch, temperature)
        np.testing.assert_allclose(found, expected, **CLOSE)
        np.testing.assert_allclose(found.sum(), 4, rtol=1e-6)


def test_epoch_means():
    losses = jnp.arange(12.0).reshape(6, 2)
    history = task_weighting.EpochLosses(*jnp.zeros((3, 2)))
    for step, row in enumerate(losses):
        history = task_weighting.add_losses(history, row, jnp.asarray(step), 2)
    np.testing.assert_allclose(history.last, losses[4:].mean(0))
    np.testing.assert_allclose(history.before, losses[2:4].mean(0))
    np.testing.assert_array_equal(history.sums, 0)


def test_uncertainty_weighting():
    losses, variances, coefficients = (
        jnp.asarray(ARRAYS[f"unc_{name}"], jnp.float32) for name in ("losses", "log_var", "coef")
    )

    def total(losses, variances):
        return task_weighting.uncertainty_weighting(losses, variances, coefficients).sum()

    value, slopes = jax.value_and_grad(total, (0, 1))(losses, variances)
    np.testing.assert_allclose(value, ARRAYS["unc_total"], **CLOSE)
    np.testing.assert_allclose(slopes[0], ARRAYS["unc_grad_losses"], **CLOSE)
    np.testing.assert_allclose(slopes[1], ARRAYS["unc_grad_log_var"], **CLOSE)


def test_ramp():
    found = task_weighting.sigmoid_rampup(jnp.asarray(ARRAYS["ramp_t"]), float(ARRAYS["ramp_T"]))
    np.testing.assert_allclose(found, ARRAYS["ramp_value"], **CLOSE)
    np.testing.assert_allclose(task_weighting.sigmoid_rampup(0, 10), np.exp(-5), rtol=1e-6)
    np.testing.assert_allclose(task_weighting.sigmoid_rampup(jnp.asarray(3), 0), 1)


def test_pcgrad():
    gradients, order = jnp.asarray(ARRAYS["pcgrad_grads"]), jnp.asarray(ARRAYS["pcgrad_order"])
    found = task_weighting.pcgrad(gradients, order)
    np.testing.assert_allclose(found, ARRAYS["pcgrad_projected"], **CLOSE)
    np.testing.assert_allclose(found.sum(0), ARRAYS["pcgrad_sum"], **CLOSE)


def test_pcgrad_leaves_what_does_not_oppose():
    agreeing = jnp.array([[1.0, 0.0], [0.5, 1.0]])
    np.testing.assert_array_equal(task_weighting.pcgrad(agreeing, jnp.array([[1], [0]])), agreeing)
    zero = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    assert np.isfinite(task_weighting.pcgrad(zero, jnp.array([[1], [0]]))).all()


def test_random_order():
    orders = jax.vmap(task_weighting.random_order, (0, None))(jax.random.split(jax.random.key(0), 20), 4)
    assert all(sorted(row) == [other for other in range(4) if other != task]
               for drawn in orders.tolist() for task, row in enumerate(drawn))  # fmt: skip
    assert len({str(drawn) for drawn in orders.tolist()}) > 10
