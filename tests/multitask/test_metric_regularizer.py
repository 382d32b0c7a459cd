"""The regulariser against the golden arrays, and what must hold of all its forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multitask import metric_regularizer as metric
from tests.multitask import golden

ARRAYS = golden.load("metric_reg")
U, UBAR, WEIGHTS = (jnp.asarray(ARRAYS[name], jnp.float32) for name in ("u", "ubar", "task_weights"))
FORMS = {
    "center": {"kind": "center", "radius": 0.0},
    "center_radius": {"kind": "center", "radius": float(ARRAYS["radius"])},
    "npair": {"kind": "npair"},
    "triplet_all": {"kind": "triplet", "mining": "all"},
    "triplet_nonzero": {"kind": "triplet", "mining": "nonzero"},
    "triplet_hardest": {"kind": "triplet", "mining": "hardest"},
    "pairwise": {"kind": "pairwise"},
}
EVERY = jnp.ones(U.shape[1], bool)


def make(form):
    fields = {"temperature": float(ARRAYS["tau"]), "margin": float(ARRAYS["margin"]), "mining": "all", "radius": 0.0}
    return metric.make_regularizer(**{**fields, **FORMS[form]})


def regularizer(form, u, ubar=UBAR, weights=WEIGHTS, valid=EVERY):
    return make(form)(metric.norm(u), metric.task_ensemble(ubar, weights), valid).mean()


@pytest.mark.parametrize("form", FORMS)
def test_losses_and_gradients(form):
    value, gradient = jax.value_and_grad(lambda u: regularizer(form, u))(U)
    np.testing.assert_allclose(value, ARRAYS[f"{form}_loss"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, ARRAYS[f"{form}_grad_u"], rtol=1e-5, atol=1e-6)


def test_embeddings_and_ensemble():
    np.testing.assert_allclose(metric.norm(U), ARRAYS["z"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metric.task_ensemble(UBAR, WEIGHTS), ARRAYS["ensemble"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_invariants(form):
    value = regularizer(form, U)
    assert value >= 0
    scale = jnp.exp(jax.random.normal(jax.random.key(0), (3, 8, 1)))
    np.testing.assert_allclose(regularizer(form, U * scale, UBAR * scale), value, rtol=1e-5)
    order = jnp.array([2, 0, 1])
    np.testing.assert_allclose(regularizer(form, U[order], UBAR[order], WEIGHTS[order]), value, rtol=1e-5)
    slope = jax.grad(lambda ubar: regularizer(form, U, ubar))(UBAR)
    assert not np.any(slope)
    if form != "pairwise":
        assert np.isfinite(regularizer(form, U[:1], UBAR[:1], jnp.ones(1)))


def test_the_centre_costs_nothing_where_all_agree():
    one = jax.random.normal(jax.random.key(1), (1, 8, 16))
    same = one * jnp.array([1.0, 2.0, 0.5])[:, None, None]
    assert abs(regularizer("center", same, same)) < 1e-6
    assert abs(regularizer("pairwise", same)) < 1e-6


@pytest.mark.parametrize("form", sorted(FORMS.keys() - {"pairwise"}))
def test_images_without_an_anchor_are_left_out(form):
    valid = EVERY.at[jnp.array([1, 6])].set(False)
    kept = np.flatnonzero(valid)
    gradient = jax.grad(lambda u: regularizer(form, u, valid=valid))(U)
    np.testing.assert_allclose(
        regularizer(form, U, valid=valid), regularizer(form, U[:, kept], UBAR[:, kept], valid=valid[kept]), rtol=1e-5
    )
    assert np.isfinite(gradient).all()
    assert not np.any(gradient[:, ~np.asarray(valid)])
    nothing = jnp.zeros(8, bool)
    assert regularizer(form, U, valid=nothing) == 0
    assert not np.any(jax.grad(lambda u: regularizer(form, u, valid=nothing))(U))


def test_zero_embeddings_have_finite_gradients():
    for form in FORMS:
        assert np.isfinite(jax.grad(lambda u, form=form: regularizer(form, u))(jnp.zeros_like(U))).all()
    np.testing.assert_array_equal(metric.task_ensemble(jnp.stack([U[0], -U[0]]), jnp.full(2, 0.5)), 0 * U[0])


def test_collapse_statistics():
    spread = metric.norm(jax.random.normal(jax.random.key(0), (2, 500, 16)))
    np.testing.assert_allclose(metric.collapse_statistics(spread), 0.25, atol=0.01)
    np.testing.assert_allclose(metric.collapse_statistics(spread[:, :1] + 0 * spread), 0, atol=1e-6)
