"""Optimal-transport matching of target identities to the reference identity, for all groups of a batch at once.

The official code runs Sinkhorn-Knopp with additive epsilons, five sweeps and one half step, on masses that differ when
the groups' sizes do. That recursion is `solver="official"`. `solver="ott"` is what it approximates: the same sweeps
between normalised masses without epsilons, by ott-jax. Shapes: B rows of the batch, N groups, T = N - 1 targets; all
arrays are masked to the rows that belong somewhere.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fer.grouping import Groups

WEIGHTINGS = ("relevance", "norm")
MASSES = ("official", "balanced")
SOLVERS = ("official", "ott")
SHIFTS = ("first_sample", "per_sample", "mean")
_SMALLEST_NORM = 1e-6
_EXACT = jax.lax.Precision.HIGHEST


class Options(NamedTuple):
    """What is fixed before compilation; the defaults are the official code's."""

    weighting: str = "relevance"  # marginals from inner products with the other group's mean, or from norms
    marginal_mass: str = "official"  # n and m, which differ; "balanced": m on both sides
    solver: str = "official"
    shift: str = "first_sample"  # one number for a group; "per_sample": one for each frame (the paper's figure)
    sharpness: float = 5.0  # λ of the kernel exp(-λ cost)
    iterations: int = 5
    epsilon: float = 1e-6
    guard: bool = True  # uniform masses where all weights of a target are zero, instead of 0 / 0


class Matching(NamedTuple):
    """`plan` [i, j]: mass from reference frame i to target frame j, for one copy of each."""

    cost: Float[Array, "B B"]
    plan: Float[Array, "B B"]
    shift: Float[Array, " B"]  # of each target frame, 0 elsewhere


def match(features: Float[Array, "B d"], groups: Groups, options: Options) -> Matching:
    """Match every target group to the reference group. No gradient flows through it (as in the official code)."""
    features = jax.lax.stop_gradient(features.astype(jnp.promote_types(features.dtype, jnp.float32)))
    members = groups.members.astype(features.dtype)
    cost = cosine_cost(features)
    r, c = marginals(features, members, options)
    if options.solver == "ott":
        plan = ott_plan(cost, members, r, c, options)
    else:
        kernel = jnp.exp(-options.sharpness * cost)
        u, v = sinkhorn_knopp(kernel, members, r, c, options.iterations, options.epsilon)
        plan = _of_columns(members, u) * kernel * v[None]
    transported = jnp.sum(members[0][:, None] * plan * cost, axis=0)
    return Matching(cost, plan, group_shift(transported, groups, options.shift))


def cosine_cost(features: Float[Array, "B d"]) -> Float[Array, "B B"]:
    """1 - cosine between all pairs of rows; each norm is at least 1e-6, so a row of zeros costs 1."""
    norms = jnp.maximum(_norms(features), _SMALLEST_NORM)
    inner = jnp.matmul(features, features.T, precision=_EXACT)
    return 1.0 - inner / (norms[:, None] * norms[None])


def marginals(
    features: Float[Array, "B d"], members: Float[Array, "N B"], options: Options
) -> tuple[Float[Array, "T B"], Float[Array, " B"]]:
    """Masses of the reference frames for each target, r [T, B], and of the target frames, c [B] (official code).

    With `marginal_mass="official"` r sums to the reference's size n and c to the target's size m.
    """
    sizes, targets = jnp.sum(members, axis=1), members[1:]
    in_reference, in_target = members[0] > 0, targets > 0
    if options.weighting == "relevance":
        means = jnp.matmul(members, features, precision=_EXACT) / jnp.maximum(sizes, 1.0)[:, None]
        relevance = jax.nn.relu(jnp.matmul(means, features.T, precision=_EXACT))
        of_reference, of_target = relevance[1:], relevance[:1]
    else:
        of_reference = of_target = _norms(features)[None]
    a = jnp.where(in_reference[None], jnp.broadcast_to(of_reference, targets.shape), 0.0)
    b = jnp.where(in_target, jnp.broadcast_to(of_target, targets.shape), 0.0)
    total_a = jnp.sum(members[:1] * a, axis=1, keepdims=True)
    total_b = jnp.sum(targets * b, axis=1, keepdims=True)
    if options.guard:
        b, total_b = jnp.where(total_b > 0, b, in_target), jnp.where(total_b > 0, total_b, sizes[1:, None])
    c = sizes[1:, None] * b / jnp.where(sizes[1:, None] > 0, total_b, 1.0)
    if options.marginal_mass == "official" and options.solver == "official":
        r = sizes[0] * a / (total_a + options.epsilon)
    else:
        positive = total_a > 0
        a, total_a = jnp.where(positive, a, in_reference[None]), jnp.where(positive, total_a, sizes[0])
        mass = sizes[1:, None] if options.marginal_mass == "balanced" else sizes[0]
        r = mass * a / jnp.maximum(total_a, jnp.finfo(a.dtype).tiny)
    return r, jnp.sum(c, axis=0)


def sinkhorn_knopp(
    kernel: Float[Array, "B B"],
    members: Float[Array, "N B"],
    r: Float[Array, "T B"],
    c: Float[Array, " B"],
    iterations: int,
    epsilon: float,
) -> tuple[Float[Array, "T B"], Float[Array, " B"]]:
    """The official recursion for all targets at once: scalings u of reference rows and v of target columns.

    u = 1 / n, then `iterations` times  q = c / (Kᵀu + eps),  u = 1 / (K q / (r + eps) + eps);
    at last  v = c / (Kᵀu + eps).  No stopping test.
    """
    reference, targets = members[0], members[1:]
    in_target = (targets > 0).astype(kernel.dtype)

    def column_sums(u: Array) -> Array:
        sums = jnp.matmul(u * reference[None], kernel, precision=_EXACT)
        return jnp.where(jnp.any(targets > 0, axis=0), jnp.sum(in_target * sums, axis=0) + epsilon, 1.0)

    start = jnp.where(reference > 0, 1.0 / jnp.maximum(jnp.sum(reference), 1.0), 0.0)
    u = jnp.broadcast_to(start[None], r.shape)
    for _ in range(iterations):
        q = c / column_sums(u)
        rows = jnp.matmul(targets * q[None], kernel.T, precision=_EXACT)
        u = jnp.where(reference[None] > 0, 1.0 / (rows / (r + epsilon) + epsilon), 0.0)
    return u, c / column_sums(u)


def ott_plan(
    cost: Float[Array, "B B"],
    members: Float[Array, "N B"],
    r: Float[Array, "T B"],
    c: Float[Array, " B"],
    options: Options,
) -> Float[Array, "B B"]:
    """The recursion without epsilons between normalised masses, by ott-jax, times each target's mass.

    Groups are padded to the whole batch with mass 0, which leaves the plan of the others as it is.
    """
    # Imported where it is used: it takes a second, and one of its own imports warns.
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn as ott_sinkhorn

    solver = ott_sinkhorn.Sinkhorn(
        lse_mode=True,
        threshold=0.0,
        min_iterations=options.iterations,
        max_iterations=options.iterations,
        inner_iterations=options.iterations,
        implicit_diff=None,
    )
    reference, targets = members[0], members[1:]

    def one(row_mass: Array, column_mass: Array) -> Array:
        total = jnp.sum(column_mass)
        empty = total <= 0
        a = row_mass / jnp.sum(row_mass)
        b = jnp.where(empty, 1.0 / column_mass.shape[0], column_mass / jnp.where(empty, 1.0, total))
        geom: Any = geometry.Geometry(cost_matrix=cost, epsilon=1.0 / options.sharpness, scale_cost=1.0)
        found = solver(linear_problem.LinearProblem(geom, a, b))
        g = geom.update_potential(found.f, found.g, jnp.log(b), axis=0)
        return jnp.where(empty, 0.0, total) * geom.transport_from_potentials(found.f, g)

    with jax.numpy_rank_promotion("allow"):  # ott-jax counts on it
        plans = jnp.sum(jax.vmap(one)(r * reference[None], targets * c[None]), axis=0)
    copies = reference[:, None] * jnp.sum(targets, axis=0)[None]
    return jnp.where(copies > 0, plans / jnp.where(copies > 0, copies, 1.0), 0.0)


def group_shift(transported: Float[Array, " B"], groups: Groups, kind: str) -> Float[Array, " B"]:
    """What is subtracted from each target frame's features, from the transported cost Σ_i P_ij M_ij at each frame.

    "first_sample": that of the group's first frame, for all its frames (official code); "per_sample": each its own
    (the paper's figure); "mean": the group's mean.
    """
    targets = groups.members[1:].astype(transported.dtype)
    if kind == "per_sample":
        of_group = jnp.broadcast_to(transported[None], targets.shape)
    elif kind == "mean":
        sizes = jnp.sum(targets, axis=1, keepdims=True)
        of_group = jnp.sum(targets * transported[None], axis=1, keepdims=True) / jnp.maximum(sizes, 1.0)
    else:
        first = jnp.argmin(jnp.where(targets > 0, groups.rank[None], jnp.inf), axis=1)
        of_group = transported[first][:, None]
    return jnp.sum(jnp.where(targets > 0, of_group, 0.0), axis=0)


def _of_columns(members: Float[Array, "N B"], u: Float[Array, "T B"]) -> Float[Array, "B B"]:
    """[i, j]: u of row i for the target that column j belongs to, 0 where it belongs to none."""
    return jnp.matmul(u.T, (members[1:] > 0).astype(u.dtype), precision=_EXACT)


def _norms(features: Float[Array, "B d"]) -> Float[Array, " B"]:
    """Lengths of rows; the derivative at a row of zeros is 0."""
    squares = jnp.sum(features * features, axis=1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
