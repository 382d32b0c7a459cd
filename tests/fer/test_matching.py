"""Marginals, cost, plan and shift against the official functions, and what matching must not do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer import grouping, matching
from tests.fer import official

CASES = ("square", "wide", "tall", "single_ref", "single_tgt", "extreme")
ALL = [*((f"rw{rw}_{case}", rw) for rw in (1, 0) for case in CASES), ("rw1_dead_rows", 1), ("rw1_signed", 1)]


def pair(arrays, prefix, dtype):
    """Features of a golden pair as one batch of two groups, padded by rows of nobody: one shape for all pairs."""
    x, y = (np.asarray(arrays[f"{prefix}_{name}"], dtype) for name in ("x", "y"))
    features, identity = np.zeros((40, 16), dtype), np.full(40, -1)
    features[: len(x), : x.shape[1]], identity[: len(x)] = x, 0
    features[len(x) : len(x) + len(y), : x.shape[1]], identity[len(x) : len(x) + len(y)] = y, 1
    groups = grouping.make_groups(jnp.asarray(identity), jnp.asarray([0, 1]))
    return jnp.asarray(features), groups, slice(0, len(x)), slice(len(x), len(x) + len(y))


@functools.partial(official.jit, static_argnums=2)
def match(features, groups, options):
    return matching.match(features, groups, options)


@functools.partial(official.jit, static_argnums=2)
def scalings(features, groups, options):
    """What the plan is made of."""
    r, c = matching.marginals(features, groups.members, options)
    kernel = jnp.exp(-options.sharpness * matching.cosine_cost(features))
    return r, c, *matching.sinkhorn_knopp(kernel, groups.members, r, c, options.iterations, options.epsilon)


@pytest.mark.parametrize(("prefix", "rw"), ALL)
def test_official_plan(prefix, rw):
    arrays = official.golden("sinkhorn")
    options = matching.Options(weighting="relevance" if rw else "norm", shift="per_sample")
    features, groups, rows, columns = pair(arrays, prefix, np.float32)
    found = match(features, groups, options)
    r, c, u, v = scalings(features, groups, options)
    ours = {"r": r[0, rows], "c": c[columns], "cost": found.cost[rows, columns], "u": u[0, rows], "v": v[columns]}
    ours |= {"plan": found.plan[rows, columns], "mu": found.shift[columns]}
    for name, value in ours.items():
        assert official.relative(value, arrays[f"{prefix}_{name}"]) < 1e-5, name
    # Nothing outside the pair of groups.
    assert np.abs(found.plan).sum() == pytest.approx(np.abs(ours["plan"]).sum())
    assert np.abs(found.shift).sum() == pytest.approx(np.abs(ours["mu"]).sum())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
def test_ott_is_the_official_recursion_without_epsilons(case, dtype, tolerance):
    with jax.enable_x64(dtype == np.float64):
        arrays = official.golden("sinkhorn")
        features, groups, rows, columns = pair(arrays, f"rw1_{case}", dtype)
        reference = arrays[f"rw1_{case}_plan_noeps_f64"]
        found = match(features, groups, matching.Options(solver="ott")).plan[rows, columns]
        assert official.relative(found, reference) < tolerance
        if dtype == np.float64:
            exact = match(features, groups, matching.Options(epsilon=0.0)).plan[rows, columns]
            assert official.relative(exact, reference) < tolerance
            assert official.relative(found, arrays[f"rw1_{case}_plan_converged_f64"]) < 1e-4


def test_the_epsilons_matter_where_sizes_differ():
    """The wrong mass of the official plan grows with |log(n / m)|; balanced masses mend it."""
    errors = {"official": [], "balanced": []}
    for case in ("square", "wide", "extreme"):
        arrays = official.golden("sinkhorn")
        features, groups, rows, columns = pair(arrays, f"rw1_{case}", np.float32)
        reference = arrays[f"rw1_{case}_plan_noeps_f64"]
        for mass, found in errors.items():
            plan = match(features, groups, matching.Options(marginal_mass=mass)).plan[rows, columns]
            found.append(official.relative(plan, reference))
    assert errors["official"] == sorted(errors["official"])
    assert errors["official"][2] > 0.5
    assert max(errors["balanced"]) < 1e-3


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
    shift = np.asarray(match(jnp.asarray(features), groups, options).shift)
    padded = np.asarray(match(jnp.asarray(features), groups, options._replace(solver="ott")).shift)
    reference = features[identity == picked[0]]
    for target in picked[1:]:
        rows = identity == target
        np.testing.assert_allclose(shift[rows], slow_shift(reference, features[rows], weighting), rtol=1e-9)
        np.testing.assert_allclose(padded[rows], slow_shift(reference, features[rows], weighting, 0.0), rtol=1e-9)
    assert not shift[~np.isin(identity, picked[1:])].any()


def test_order_of_frames_and_of_targets():
    features, identity, picked = batch()
    features = features.astype(np.float32)
    options = matching.Options(shift="per_sample")

    def shift(features, identity, picked):
        groups = grouping.make_groups(jnp.asarray(identity), jnp.asarray(picked))
        return np.asarray(match(jnp.asarray(features), groups, options).shift)

    before = shift(features, identity, picked)
    order = np.random.default_rng(5).permutation(len(identity))
    np.testing.assert_allclose(shift(features[order], identity[order], picked), before[order], atol=1e-5)
    np.testing.assert_allclose(shift(features, identity, [picked[0], *picked[:0:-1]]), before, atol=1e-5)


def test_kinds_of_shift():
    features, identity, picked = batch()
    groups = grouping.make_groups(jnp.asarray(identity), jnp.asarray(picked))
    of = {
        kind: np.asarray(match(jnp.asarray(features, jnp.float32), groups, matching.Options(shift=kind)).shift)
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

    @jax.jit
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
    shift = match(features, groups, options).shift[3:]
    assert np.isfinite(shift).all()
    if solver == "official" and weighting == "relevance":
        assert np.isnan(match(features, groups, options._replace(guard=False)).shift[3:]).all()
    if weighting == "relevance" and solver == "ott":
        np.testing.assert_allclose(shift, 1.0, rtol=1e-5)  # all mass at cost 1
    dead = match(jnp.zeros((6, 4)), groups, options).shift
    assert np.isfinite(dead).all()


def test_one_program_for_all_sizes_of_groups():
    match.clear_cache()
    for seed in (0, 1, 2):
        features, identity, picked = batch(seed)
        match(
            jnp.asarray(features, jnp.float32),
            grouping.make_groups(jnp.asarray(identity), jnp.asarray(picked)),
            matching.Options(),
        )
    assert match._cache_size() == 1
