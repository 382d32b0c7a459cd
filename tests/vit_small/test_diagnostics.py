"""Definitions of the analyses against their golden values, and their limits."""

import numpy as np
import pytest

from tests.vit_small import official
from vit_small import analysis, diagnostics


@pytest.mark.parametrize(("name", "prefix", "masked"), [("standard", "vit.spt0.lsa0.", 0), ("sl", "vit.spt1.lsa1.", 1)])
def test_golden_diagnostics(name, prefix, masked):
    arrays, models = official.golden("diagnostics"), official.golden("models_tiny")
    layers = list(models[f"{prefix}attention_probs"].astype(np.float64))

    def close(ours, golden):
        np.testing.assert_allclose(ours, arrays[f"{name}.{golden}"], atol=1e-4, err_msg=golden)

    close([diagnostics.entropy(layer) for layer in layers], "entropy")
    close([diagnostics.kl_to_uniform(layer, 17) for layer in layers], "kl_to_uniform_all_tokens")
    close([diagnostics.kl_to_uniform(layer, 17 - masked) for layer in layers], "kl_to_uniform_over_allowed")
    close([diagnostics.class_token_map(layer, (4, 4)) for layer in layers], "class_token_map")
    close(diagnostics.rollout(layers)[:, 0, 1:], "rollout")
    assert (diagnostics.diagonal(layers[0]) == 0) == bool(masked)


def test_golden_temperatures():
    arrays, models = official.golden("diagnostics"), official.golden("models_tiny")
    model = official.tiny("vit", official.design(1, 1))
    scales = np.stack(analysis.scales_by_layer(official.params(model, models, "vit.spt1.lsa1.")))
    np.testing.assert_allclose(scales, arrays["sl.scale"], atol=1e-12)
    temperatures = diagnostics.temperatures(scales).mean(axis=1)
    np.testing.assert_allclose(temperatures, arrays["sl.temperature_per_layer"], atol=1e-4)
    np.testing.assert_allclose(analysis.head_width(model) ** 0.5, arrays["sl.temperature_reference"])


@pytest.mark.parametrize("name", official.NAMES)
def test_layers_come_in_order(name):
    """By the official names' order."""
    arrays, prefix = official.golden("models_tiny"), f"{name}.spt1.lsa1."
    model = official.tiny(name, official.design(1, 1))
    weights = official.weights(arrays, prefix)
    expected = [weights[n] for n in weights if n.endswith("scale") and weights[n].ndim == 1]
    ours = analysis.scales_by_layer(official.params(model, arrays, prefix))
    assert len(ours) == len(expected)
    for row, golden in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(row, golden)


def test_limits():
    uniform = np.full((2, 3, 4, 4), 0.25)
    assert diagnostics.kl_to_uniform(uniform, 4) == pytest.approx(0)
    assert diagnostics.entropy(np.broadcast_to(np.eye(4), (2, 3, 4, 4)).copy()) == 0
    relevance = diagnostics.rollout([uniform] * 5)
    np.testing.assert_allclose(relevance.sum(axis=-1), 1)
    pooled = diagnostics.pooling_matrix((4, 6))
    assert pooled.shape == (7, 25)
    np.testing.assert_allclose(pooled.sum(axis=1), 1)
    with pytest.raises(ValueError, match="at least one layer"):
        diagnostics.rollout([])


def test_received_attention_finds_its_place():
    """One token is looked at by its whole window."""
    attention = np.zeros((4, 1, 16, 16))
    attention[:, :, :, 0] = 1 / 16
    attention[1, :, :, 5] = 1
    image = diagnostics.received(attention, (8, 8), 0)[0]
    assert image[1, 5] == image.max()
    assert np.unravel_index(diagnostics.received(attention, (8, 8), 2)[0].argmax(), (8, 8)) == (3, 7)
