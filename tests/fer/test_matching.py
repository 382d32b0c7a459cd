"""Marginals, cost, plan and shift against the official functions, and what matching must not do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ott.geometry import geometry
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn as ott_sinkhorn

from fer import grouping, matching
from tests.fer import official

CASES = ("square", "wide", "tall", "single_ref", "single_tgt", "extreme")
ALL = [*((f"rw{rw}_{case}", rw) for rw in (1, 0) for case in CASES), ("rw1_dead_rows", 1), ("rw1_signed", 1)]


def pair(arrays, prefix, dtype):
    """Features of a golden pair as one batch of two groups."""
    x, y = (np.asarray(arrays[f"{prefix}_{name}"], dtype) for name in ("x", "y"))
    identity = jnp.asarray([0] * len(x) + [1] * len(y))
    return jnp.concatenate([x, y]), grouping.make_groups(identity, jnp.asarray([0, 1])), len(x)


@pytest.mark.parametrize(("prefix", "rw"), ALL)
def test_official_plan(prefix, rw):
    arrays = official.golden("sinkhorn")
    options = matching.Options(weighting="relevance" if rw else "norm", shift="per_sample")
    features, groups, n = pair(arrays, prefix, np.float32)
    found = matching.match(features, groups, options)
    r, c = matching.marginals(features, groups.members, options)
    kernel = jnp.exp(-options.sharpness * found.cost)
    u, v = matching.sinkhorn_knopp(kernel, groups.members, r, c, 5, 1e-6)
    ours = {"r": r[0, :n], "c": c[n:], "cost": found.cost[:n, n:], "u": u[0, :n], "v": v[n:]}
    ours |= {"plan": found.plan[:n, n:], "mu": found.shift[n:]}
    for name, value in ours.items():
        assert official.relative(value, arrays[f"{prefix}_{name}"]) < 1e-5, name
    # Nothing outside the pair of groups.
    assert float(jnp.abs(found.plan).sum()) == pytest.approx(float(jnp.abs(ours["plan"]).sum()))
    np.testing.assert_array_equal(found.shift[:n], 0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
def test_ott_is_the_official_recursion_without_epsilons(case, dtype, tolerance):
    with jax.enable_x64(dtype == np.float64):
        arrays = official.golden("sinkhorn")
        features, groups, n = pair(arrays, f"rw1_{case}", dtype)
        reference = arrays[f"rw1_{case}_plan_noeps_f64"]
        found = matching.match(features, groups, matching.Options(solver="ott"))
        assert official.relative(found.plan[:n, n:], reference) < tolerance
        if dtype == np.float64:
            exact = matching.match(features, groups, matching.Options(epsilon=0.0))
            assert official.relative(exact.plan[:n, n:], reference) < tolerance
            converged = arrays[f"rw1_{case}_plan_converged_f64"]
            assert official.relative(found.plan[:n, n:], converged) < 1e-4


def test_the_epsilons_matter_where_sizes_differ():
    """The wrong mass of the official plan grows with |log(n / m)|; balanced masses mend it."""
    errors, balanced = [], []
    for case in ("square", "wide", "extreme"):
        arrays = official.golden("sinkhorn")
        features, groups, n = pair(arrays, f"rw1_{case}", np.float32)
        reference = arrays[f"rw1_{case}_plan_noeps_f64"]
        for options, into in ((matching.Options(), errors), (matching.Options(marginal_mass="balanced"), balanced)):
            plan = matching.match(features, groups, options).plan[:n, n:]
            into.append(official.relative(plan, reference))
    assert errors[0] < errors[1] < errors[2]
    assert errors[2] > 0.5
    assert max(balanced) < 1e-3


def slow_shift(x, y, weighting="relevance", epsilon=1e-6):
    """One pair of groups, written out in NumPy."""
    norms = [np.maximum(np.linalg.norm(z, axis=1), 1e-6) for z in (x, y)]
    cost = 1 - x @ y.T / np.outer(*norms)
    if weighting == "relevance":
        a, b = np.maximum(x @ y.mean(0), 0), np.maximum(y @ x.mean(0), 0)
    else:
        a, b = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
    r, c = len(x) * a / (a.sum() + epsilon), len(y) * b / b.sum()
    kernel, u = np.exp(-5 * cost), np.full(len(x), 1 / len(x))
    for _ in range(5):
        q = c / (kernel.T @ u + epsilon)
        u = 1 / (kernel @ q / (r + epsilon) + epsilon)
    plan = u[:, None] * kernel * (c / (kernel.T @ u + epsilon))
    return (plan * cost).sum(0)


def batch(seed=0, sizes=(4, 3, 1, 6, 2), d=8):
    """Shuffled features of some identities, and the order in which they are picked."""
    random = np.random.default_rng(seed)
    identity = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    features = np.maximum(random.normal(size=(len(identity), d)), 0) + 0.01
    return features, identity, random.permutation(len(sizes))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weighting", matching.WEIGHTINGS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_groups_at_once_equal_one_pair_at_a_time(seed, weighting):
    """Groups in one batch, groups padded (ott-jax), and pairs by themselves."""
    features, identity, picked = batch(seed)
    picked = picked[:4]
    groups = grouping.make_groups(jnp.asarray(identity), jnp.asarray([*picked, -1]))  # and an empty group
    options = matching.Options(weighting=weighting, shift="per_sample")
    shift = np.asarray(matching.match(jnp.asarray(features), groups, options).shift)
    padded = np.asarray(matching.match(jnp.asarray(features), groups, options._replace(solver="ott")).shift)
    reference = features[identity == picked[0]]
    for target in picked[1:]:
        rows = identity == target
        np.testing.assert_allclose(shift[rows], slow_shift(reference, features[rows], weighting), rtol=1e-9)
        # Without epsilons, each pair by itself through ott-jax: the padding changes nothing.
        np.testing.assert_allclose(padded[rows], ott_alone(reference, features[rows], weighting), rtol=1e-9)
    assert not shift[~np.isin(identity, picked[1:])].any()


def ott_alone(x, y, weighting):
    """A pair through ott-jax with the settings of the exact backend, without padding."""
    if weighting == "relevance":
        a, b = np.maximum(x @ y.mean(0), 0), np.maximum(y @ x.mean(0), 0)
    else:
        a, b = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
    cost = 1 - x @ y.T / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1))
    geom = geometry.Geometry(cost_matrix=jnp.asarray(cost), epsilon=0.2, scale_cost=1.0)
    solver = ott_sinkhorn.Sinkhorn(
        lse_mode=True, threshold=0.0, min_iterations=5, max_iterations=5, inner_iterations=5, implicit_diff=None
    )
    b = jnp.asarray(b / b.sum())
    with jax.numpy_rank_promotion("allow"):
        found = solver(linear_problem.LinearProblem(geom, jnp.asarray(a / a.sum()), b))
    plan = geom.transport_from_potentials(found.f, geom.update_potential(found.f, found.g, jnp.log(b), axis=0))
    return len(y) * (np.asarray(plan) * cost).sum(0)


def test_order_of_frames_and_of_targets():
    features, identity, picked = batch()
    features = features.astype(np.float32)
    options = matching.Options(shift="per_sample")

    def shift(features, identity, picked):
        groups = grouping.make_groups(jnp.asarray(identity), jnp.asarray(picked))
        return np.asarray(matching.match(jnp.asarray(features), groups, options).shift)

    before = shift(features, identity, picked)
    order = np.random.default_rng(5).permutation(len(identity))
    np.testing.assert_allclose(shift(features[order], identity[order], picked), before[order], atol=1e-5)
    np.testing.assert_allclose(shift(features, identity, [picked[0], *picked[:0:-1]]), before, atol=1e-5)


def test_kinds_of_shift():
    features, identity, picked = batch()
    groups = grouping.make_groups(jnp.asarray(identity), jnp.asarray(picked))
    of = {
        kind: np.asarray(matching.match(jnp.asarray(features, jnp.float32), groups, matching.Options(shift=kind)).shift)
        for kind in matching.SHIFTS
    }
    for target in picked[1:]:
        rows = np.flatnonzero(identity == target)
        np.testing.assert_allclose(of["first_sample"][rows], of["per_sample"][rows[0]], rtol=1e-6)
        np.testing.assert_allclose(of["mean"][rows], of["per_sample"][rows].mean(), rtol=1e-5)


@pytest.mark.parametrize("solver", matching.SOLVERS)
def test_no_gradient_through_the_plan(solver):
    """The shift depends on the features; a loss of it does not move them."""
    features, identity, picked = batch()
    groups = grouping.make_groups(jnp.asarray(identity), jnp.asarray(picked))
    features = jnp.asarray(features, jnp.float32)

    def shift(features):
        return matching.match(features, groups, matching.Options(solver=solver)).shift

    assert float(jnp.abs(shift(features) - shift(features * (1 + 0.1 * jnp.arange(8)[None]))).max()) > 1e-3
    gradient = jax.grad(lambda z: jnp.sum(shift(z) ** 2))(features)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("solver", matching.SOLVERS)
@pytest.mark.parametrize("weighting", matching.WEIGHTINGS)
def test_groups_without_common_support(solver, weighting):
    """All weights zero: 0 / 0 in the official code, uniform masses with the guard."""
    features = jnp.zeros((6, 4)).at[:3, 0].set(1.0).at[3:, 1].set(jnp.arange(1.0, 4.0))
    groups = grouping.make_groups(jnp.asarray([0, 0, 0, 1, 1, 1]), jnp.asarray([0, 1]))
    options = matching.Options(weighting=weighting, solver=solver, shift="per_sample")
    shift = matching.match(features, groups, options).shift[3:]
    assert np.isfinite(shift).all()
    if solver == "official" and weighting == "relevance":
        assert np.isnan(matching.match(features, groups, options._replace(guard=False)).shift[3:]).all()
    if weighting == "relevance" and solver == "ott":
        np.testing.assert_allclose(shift, 1.0, rtol=1e-5)  # all mass at cost 1
    dead = matching.match(jnp.zeros((6, 4)), groups, options).shift
    assert np.isfinite(dead).all()


def test_compiled_with_traced_groups():
    """One program for any sizes of groups."""
    features, identity, picked = batch()
    features = jnp.asarray(features, jnp.float32)
    compiled = jax.jit(
        lambda z, identity, picked: matching.match(z, grouping.make_groups(identity, picked), matching.Options()).shift
    )
    for order in (picked, picked[::-1]):
        groups = grouping.make_groups(jnp.asarray(identity), jnp.asarray(order))
        plain = functools.partial(matching.match, options=matching.Options())(features, groups).shift
        np.testing.assert_allclose(compiled(features, jnp.asarray(identity), jnp.asarray(order)), plain, atol=1e-5)
    assert compiled._cache_size() == 1
