"""Metrics, standard and official, against golden numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from fer import losses, metrics
from tests.fer import official


def test_golden_metrics():
    arrays = official.golden("metrics")
    predictions, labels = arrays["predictions"], arrays["labels"]
    ours = metrics.standard(predictions, labels)
    theirs = metrics.official(predictions, labels, int(arrays["batch_size"]))
    for name in metrics.NAMES:
        assert official.relative(ours[name], arrays[f"standard_{name}"]) < 1e-6, name
        assert official.relative(theirs[name], arrays[f"official_{name}"]) < 1e-6, name
    found = losses.agreement(jnp.asarray(predictions), jnp.asarray(labels))
    pcc_loss, ccc_loss = losses.correlation_losses(found)
    assert official.relative(pcc_loss, arrays["train_pcc_loss"]) < 1e-5
    assert official.relative(ccc_loss, arrays["train_ccc_loss"]) < 1e-5
    assert official.relative(found.ccc, arrays["train_ccc"]) < 1e-5


def test_without_variance():
    constant, labels = np.zeros((4, 2)), np.linspace(-1, 1, 8).reshape(4, 2)
    assert np.isnan(metrics.standard(constant, labels)["pcc"]).all()
    assert metrics.standard(constant, labels, undefined=0.0)["pcc"].tolist() == [0, 0]
    assert metrics.standard(constant, labels)["ccc"].tolist() == [0, 0]  # labels do vary
    assert np.isnan(metrics.standard(constant, constant)["ccc"]).all()
    perfect = metrics.standard(labels, labels)
    np.testing.assert_allclose([perfect["ccc"], perfect["pcc"]], 1)
    assert (perfect["rmse"] == 0).all()


def test_zero_labels_and_signs():
    predictions, labels = np.array([[0.5, -0.5], [0.0, 0.1]]), np.array([[0.1, 0.2], [0.0, 0.3]])
    assert metrics.standard(predictions, labels)["sagr"].tolist() == [1, 0.5]
    assert metrics.official(predictions, labels)["sagr"].tolist() == [0.5, 0.5]


def test_identity_bias():
    identity = np.array([0, 0, 5, 5])
    labels = np.zeros((4, 2))
    predictions = np.array([[0.2, 0.1], [0.4, -0.1], [-0.3, 0.5], [-0.3, -0.5]])
    np.testing.assert_allclose(metrics.identity_residuals(predictions, labels, identity), [[0.3, 0], [-0.3, 0]])
    np.testing.assert_allclose(metrics.identity_bias(predictions, labels, identity), [0.3, 0])
    assert metrics.named({"ccc": np.array([0.2, 0.4])}) == pytest.approx(
        {"ccc_valence": 0.2, "ccc_arousal": 0.4, "ccc": 0.3}
    )
