"""Ranks, counts, masked layers, batch normalisation and thresholds of the official code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import optim
from pruning import marking, masks
from pruning.configs import ekg
from pruning.models.network import Norm
from tests.pruning.networks import golden


def test_kept_channels_of_the_official_code():
    for channels, rate, kept in golden("units")["keep_count"]:
        assert masks.keep_count(int(channels), rate) == kept, (channels, rate)


def test_one_channel_always_survives():
    assert masks.keep_count(64, 0.0) == masks.keep_count(1, 1.0) == 1


def test_ties_keep_the_lower_index_first():
    units = golden("units")
    np.testing.assert_array_equal(masks.ranks(units["tied_score"]), units["tied_rank"])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(1, 20))
def test_masks_keep_the_highest_scores(scores, keep):
    scores = np.array(scores, np.float32)
    kept = masks.mask(masks.ranks(scores), keep)
    assert kept.sum() == min(keep, len(scores))
    if 0 < kept.sum() < len(scores):
        assert scores[kept > 0].min() >= scores[kept == 0].max()


def test_masked_convolution_and_its_gate():
    units = golden("units").mapped(jnp.asarray)
    in_mask, out_mask = units["conv_in_mask"], units["conv_out_mask"]

    def gated(x, kernel, tap):
        y = masks.masked_convolution(x, kernel, in_mask, out_mask, 2)
        return y, y * (out_mask * tap)[None, None, None]

    (y, out), pull = jax.vjp(gated, units["conv_x"], units["conv_kernel"], jnp.ones(9))
    close(y, units["conv_out"])
    close(out, units["gate_out"])
    # Officially the gate passes the cotangent straight through, masks of the kernel still apply.
    dx, dkernel, _ = pull((units["gate_cotangent"], jnp.zeros_like(out)))
    close(dx, units["conv_dx"])
    close(dkernel, units["conv_dkernel"])
    close(jnp.abs(pull((jnp.zeros_like(y), units["gate_cotangent"]))[2]), units["gate_score_grad"])


def test_masked_dense_and_depthwise_layers():
    units = golden("units").mapped(jnp.asarray)
    in_mask = units["conv_in_mask"]
    close(masks.masked_dense(units["fc_x"], units["fc_kernel"], in_mask), units["fc_out"])
    depthwise = jnp.moveaxis(units["dw_kernel"], 2, 3)
    close(masks.masked_convolution(units["conv_x"], depthwise, in_mask, in_mask, 1, True), units["dw_out"])


def test_candidates_share_a_kernel():
    """Also for depthwise and dense layers; each candidate has masks of its own."""
    random = np.random.default_rng(0)
    x, kernel = random.standard_normal((3, 2, 5, 5, 4)), random.standard_normal((3, 3, 4, 6))
    ins, outs = (random.random((3, count)) < 0.6 for count in (4, 6))
    x, kernel, ins, outs = (jnp.asarray(array, jnp.float32) for array in (x, kernel, ins.astype(float), outs))
    x = x * ins[:, None, None, None]
    some = [(kernel, ins, outs, False), (kernel, None, outs, False), (kernel[:, :, :1, :4], ins, ins, True)]
    for k, before, after, depthwise in some:
        together = masks.masked_convolution(x, k, before, after, 2, depthwise)
        for i in range(3):
            one = None if before is None else before[i]
            alone = masks.masked_convolution(x[i], k, one, after[i], 2, depthwise)
            close(together[i] * after[i][None, None, None], alone * after[i][None, None, None])
    dense = masks.masked_dense(x[:, :, 0, 0], kernel[0, 0], ins)
    close(dense[1], masks.masked_dense(x[1, :, 0, 0], kernel[0, 0], ins[1]))


def test_batch_normalisation_moves_biased_statistics():
    units = golden("units")
    x = jnp.asarray(units["bn_x"])
    norm = Norm(batch_statistics=True, fixed=False)
    variables = norm.init(jax.random.key(0), x)
    y, changed = norm.apply(variables, x, mutable=["batch_stats"])
    close(y, units["bn_out"])
    close(changed["batch_stats"]["mean"], units["bn_moved_mean"])
    close(changed["batch_stats"]["var"], units["bn_moved_var"])
    _, fixed = Norm(batch_statistics=True, fixed=True).apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_array_equal(fixed["batch_stats"]["mean"], 0)


@pytest.mark.parametrize("row", [0, 1])
def test_learning_rates_of_the_recipes(row):
    rate, at, factor = [(0.01, (30, 60, 80), 0.2), (0.05, (30, 60, 90), 0.1)][row]
    config = ekg.get_config().optimizer.copy_and_resolve_references()
    config.update({"learning_rate": rate, "decay_steps": at, "decay_factor": factor})
    schedule = optim.make_schedule(config)
    close([schedule(epoch) for epoch in range(100)], golden("units")["lr_schedule"][row])


@pytest.mark.parametrize("case", range(4))
def test_trimmed_otsu(case):
    units = golden("units")
    found = marking.trimmed_otsu(units[f"otsu{case}_scores"])
    assert found == pytest.approx(float(units[f"otsu{case}_threshold"]), rel=1e-12)


def test_too_few_gates_for_a_threshold_are_all_tried():
    marked, threshold = marking.mark(np.array([3.0, 1.0, marking.EXHAUSTED, 2.0]))
    assert marked.tolist() == [True, True, False, True]
    assert threshold == np.inf


def test_mass_of_what_goes_next():
    scores = [np.array([4.0, 1.0, 2.0, 3.0]), np.array([0.0, 0.0, 5.0, 6.0]), np.array([1.0])]
    rates, steps = np.array([1.0, 0.5, 0.0]), np.array([0.5, 0.25, 1.0])
    assert marking.next_mass(scores, rates, steps).tolist() == [3.0, 5.0, marking.EXHAUSTED]
    assert marking.next_mass(scores, rates, steps, release=True).tolist() == [10.0, 0.0, marking.EXHAUSTED]


def close(found, expected):
    """Relative to the largest magnitude."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(np.abs(expected).max(), 1e-30))
