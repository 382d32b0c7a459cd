"""Both losses, their gradients and the batch norm's statistics against the official code; what must hold beyond."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fer import elim, grouping, losses, matching, train
from fer.models import Header, Network, SmallCNN
from tests.fer import official

LOSS, SHIFT, GRADIENT, STATISTICS = 1e-5, 1e-5, 2e-4, 1e-5
TAGS = {
    "none": {},
    "maxfill": {"alignment": "max_filling"},
    "norm_weights": {"matching": matching.Options(weighting="norm")},
    "persample": {"matching": matching.Options(shift="per_sample")},
    "gumbel": {"alignment": "gumbel", "top_k": 3},
}


def recipe(outputs=2, **fields):
    """The official recipe around a header of the golden size."""
    network = Network(SmallCNN(), None, Header(320, outputs))
    given = {
        "network": network,
        "optimizer": optax.identity(),
        "schedule": optax.constant_schedule(1.0),
        "rate_factors": {"encoder": 1.0, "header": 1.0},
        "augmentation": train.Augmentation(0, 0, 0.0, (0.5,) * 3, (0.5,) * 3),
        "categorical": outputs != 2,
        "method": "elim",
        "updates": 2,
        "identities": 6,
        "alignment": "none",
        "top_k": 3,
        "matching": matching.Options(),
        "weight": 0.5,
        "warm_up": (5, 50),
        "encoder_clip": 1.0,
        "header_statistics": "all",
        "penalty": 3.0,
        "guard": False,
    }
    return train.Recipe(**(given | fields))


def header_of(arrays, prefix="header."):
    header = Header(320, arrays[f"{prefix}linear2.bias"].shape[0])
    shapes = jax.eval_shape(header.init, jax.random.key(0), jnp.ones((2, 16)))

    def read(name, shape):
        if "running" in name:
            return np.zeros(shape) if name.endswith("mean") else np.ones(shape)
        return arrays[prefix + name]

    return {"header": official.load(shapes["params"], read)}, {"header": official.load(shapes["batch_stats"], read)}


def compare_gradients(gradient, arrays, prefix):
    def check(name, shape):
        return arrays[prefix + name]

    reference = official.load(gradient["header"], check)
    for path, value in jax.tree_util.tree_leaves_with_path(gradient["header"]):
        expected = functools.reduce(lambda tree, key: tree[key.key], path, reference)
        name = jax.tree_util.keystr(path)
        if name == "['linear1']['bias']":  # zero but for rounding
            assert float(jnp.abs(value).max()) < 1e-5
        else:
            assert official.relative(value, expected) < GRADIENT, name


def compare_statistics(statistics, arrays, prefix):
    for ours, theirs in (("mean", "running_mean"), ("var", "running_var")):
        assert official.relative(statistics["header"]["bn1"][ours], arrays[f"{prefix}bn1.{theirs}"]) < STATISTICS


@functools.cache
def after_supervised():
    """Loss, gradients and statistics of the supervised phase on the golden features."""
    arrays = official.golden("elim_loss")
    params, statistics = header_of(arrays)
    given = recipe()

    @official.jit
    def run(params, features):
        def loss(params, features):
            scores, after = train.run_header(given.network, params, statistics, features)
            return losses.valence_arousal_loss(scores, jnp.asarray(arrays["labels"])), (scores, after)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, features)

    return params, run(params, arrays["features"])


def test_supervised_phase():
    arrays = official.golden("elim_loss")
    _, ((value, (scores, after)), (of_params, of_features)) = after_supervised()
    found = losses.agreement(scores, jnp.asarray(arrays["labels"]))
    pcc_loss, ccc_loss = losses.correlation_losses(found)
    ours = {"loss": value, "mse_v": found.mse[0], "mse_a": found.mse[1], "pcc_loss": pcc_loss, "ccc_loss": ccc_loss}
    ours |= {"ccc_v": found.ccc[0], "ccc_a": found.ccc[1], "scores": scores}
    for name, number in ours.items():
        assert official.relative(number, arrays[f"sup_{name}"]) < LOSS, name
    assert official.relative(of_features, arrays["sup_grad_features"]) < GRADIENT
    compare_gradients(of_params, arrays, "sup_grad.")
    compare_statistics(after, arrays, "sup_after.")


def golden_groups(arrays, tag, given):
    """The groups that the official code drew, by the place of each identity among the sorted ones."""
    identity = jnp.asarray(np.unique(arrays["identity"], return_inverse=True)[1])
    picked = jnp.asarray(arrays[f"{tag}_picked"])
    groups = grouping.make_groups(identity, picked)
    if given.alignment == "max_filling":
        return grouping.max_filling(groups)
    if given.alignment == "gumbel":
        uniform = np.zeros(len(identity), np.float32)
        for row, code in zip(arrays["gumbel_uniform"], picked, strict=True):
            places = np.flatnonzero(identity == code)
            uniform[places] = row[: len(places)]
        return grouping.gumbel_top_k(groups, jnp.asarray(arrays["labels"]), jnp.asarray(uniform), given.top_k)
    return groups


@pytest.mark.parametrize("tag", TAGS)
def test_matching_phase(tag):
    arrays = official.golden("elim_loss")
    params, ((_, (_, statistics)), _) = after_supervised()
    given = recipe(**TAGS[tag])
    groups = golden_groups(arrays, tag, given)

    @official.jit
    def run(params, features, groups):
        def loss(params, features):
            value, after, found = train.header_risk(
                given, params, statistics, features, jnp.asarray(arrays["labels"]), groups
            )
            return 0.5 * value, (value, after, found)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, features)

    (_, (value, after, found)), (of_params, of_features) = run(params, arrays["features"], groups)
    assert official.relative(value, arrays[f"{tag}_erm_loss_sum"]) < LOSS
    transported = jnp.sum(groups.members[0][:, None] * found.plan * found.cost, axis=0)
    per_frame = []
    for k, first in enumerate(arrays[f"{tag}_shift_first"], 1):
        members = np.asarray(groups.members[k])
        rows = np.flatnonzero(members)
        rows = rows[np.argsort(np.asarray(groups.rank)[rows])]
        of_group = np.repeat(np.asarray(transported)[rows], members[rows].astype(int))
        assert len(of_group) == arrays[f"{tag}_shift_len"][k - 1]
        assert official.relative(of_group[0], first) < SHIFT
        per_frame.append(of_group)
        used = np.asarray(found.shift)[rows]
        np.testing.assert_array_equal(used, of_group[: len(rows)] if tag == "persample" else of_group[0])
    assert official.relative(np.concatenate(per_frame), arrays[f"{tag}_shift_all"]) < SHIFT
    assert official.relative(of_features, arrays[f"{tag}_grad_features"]) < GRADIENT
    compare_gradients(of_params, arrays, f"{tag}_grad.")
    compare_statistics(after, arrays, f"{tag}_after.")


def test_categories_with_age_bins_as_identities():
    arrays = official.golden("category")
    params, statistics = header_of(arrays)
    given = recipe(7)
    kept = arrays["expression"] < 7
    bins = np.asarray(grouping.age_bins(jnp.asarray(arrays["age"][kept])))
    assert bins[arrays["age"][kept] == 30].tolist() == [1]  # [30, 40)
    present = np.unique(bins[bins >= 0])  # upper edges of two digits: sorted as text and as numbers alike
    labels = jnp.asarray(arrays["expression"][kept], jnp.int32)
    groups = grouping.make_groups(jnp.asarray(bins), jnp.asarray(present[arrays["picked"]]))
    groups = groups._replace(members=jnp.pad(groups.members, ((0, 2), (0, 0))))  # fewer bins than wanted

    @official.jit
    def run(params, features):
        def supervised(params, features):
            scores, after = train.run_header(given.network, params, statistics, features)
            return jnp.mean(losses.cross_entropies(scores, labels)), after

        def matched(params, features, statistics):
            value, _, found = train.header_risk(given, params, statistics, features, labels, groups)
            return 0.5 * value, (value, found)

        first = jax.value_and_grad(supervised, (0, 1), has_aux=True)(params, features)
        return first, jax.value_and_grad(matched, (0, 1), has_aux=True)(params, features, first[0][1])

    ((value, _), (of_params, of_features)), ((_, (risk, found)), (of_params2, of_features2)) = run(
        params, arrays["features"][kept]
    )
    assert official.relative(value, arrays["sup_loss"]) < LOSS
    assert official.relative(risk, arrays["erm_loss_sum"]) < LOSS
    compare_gradients(of_params, arrays, "sup_grad.")
    compare_gradients(of_params2, arrays, "grad.")
    for gradient, name in ((of_features, "sup_grad_features"), (of_features2, "grad_features")):
        assert official.relative(gradient, arrays[name][kept]) < GRADIENT
        assert not arrays[name][~kept].any()
    shifts = [np.asarray(found.shift)[np.flatnonzero(groups.members[k])[0]] for k in range(1, len(arrays["picked"]))]
    assert official.relative(shifts, arrays["shift_first"]) < SHIFT


def test_a_single_frame_is_predicted_from_the_header_alone():
    """Batch norm over one frame: W2 relu(beta) + b2, whatever the frame shows."""
    params, statistics = header_of(official.golden("elim_loss"))
    given, header = recipe(), params["header"]
    members = jnp.zeros((2, 5)).at[0, :3].set(1.0).at[1, 3].set(1.0)
    for seed in (0, 1):
        latents = jax.random.normal(jax.random.key(seed), (5, 16))
        scores, _ = train.run_header(given.network, params, statistics, latents, members)
        beta, last = jax.nn.relu(header["bn1"]["bias"]), header["linear2"]
        np.testing.assert_allclose(scores[3], beta @ last["kernel"] + last["bias"], rtol=1e-5)


def test_empty_groups_change_nothing():
    params, statistics = header_of(official.golden("elim_loss"))
    given = recipe()
    latents = jax.nn.relu(jax.random.normal(jax.random.key(0), (12, 16)))
    labels = jax.random.uniform(jax.random.key(1), (12, 2))
    identity = jnp.arange(12) % 3
    results = []

    @official.jit
    def run(groups):
        return train.header_risk(given, params, statistics, latents, labels, groups)

    for picked in ([0, 1, 2], [0, 1, 2, -1, -1]):
        value, after, _ = run(grouping.make_groups(identity, jnp.asarray(picked)))
        results.append((value, after["header"]["bn1"]["mean"], after["header"]["bn1"]["var"]))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("shift", matching.SHIFTS)
def test_gradient_of_the_second_update_against_finite_differences(shift):
    """With the shift held, since no gradient flows through it."""
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), header_of(official.golden("elim_loss"))[0])
    latents, labels = jnp.asarray(np.abs(random.normal(size=(9, 16)))), jnp.asarray(random.uniform(-1, 1, (9, 2)))
    groups = grouping.make_groups(jnp.arange(9) % 3, jnp.asarray([2, 0, 1]))
    held = matching.match(latents, groups, matching.Options(shift=shift)).shift
    given = recipe(matching=matching.Options(shift=shift))
    fresh = {"header": {"bn1": {"mean": jnp.zeros(320), "var": jnp.ones(320)}}}

    def whole(latents):
        return train.header_risk(given, params, fresh, latents, labels, groups)[0]

    @jax.jit
    def with_shift_held(latents):
        shifted = elim.shifted_features(latents, held, groups.members)
        scores, _ = train.run_header(given.network, params, fresh, shifted, groups.members)
        return elim.identity_risk(losses.squared_errors(scores, labels), groups.members)

    direction = jnp.asarray(random.normal(size=latents.shape))
    step = 1e-6
    numeric = (with_shift_held(latents + step * direction) - with_shift_held(latents - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(jax.jit(jax.grad(whole))(latents) * direction), numeric, rtol=1e-6)


def test_features_that_equal_their_shift():
    features = jnp.full((2, 4), 0.3)
    members = jnp.eye(2)

    def total(features):
        return jnp.sum(elim.shifted_features(features, jnp.asarray([0.0, 0.3]), members))

    assert np.isfinite(jax.grad(total)(features)).all()
    np.testing.assert_array_equal(elim.shifted_features(features, jnp.asarray([0.0, 0.3]), members)[1], 0)


def test_warm_up_jumps():
    weights = [float(elim.warm_up(step, 5, 50)) for step in (0, 4, 5, 25, 49, 50, 1000)]
    np.testing.assert_allclose(weights, [0, 0, 0.1, 0.5, 0.98, 1, 1], rtol=1e-6)
    for start, full in ((5, 50), (0, 50), (0, 0), (1, 3)):
        first = elim.first_matching_step(start, full)
        assert float(elim.warm_up(first, start, full)) > 0
        assert first == 0 or float(elim.warm_up(first - 1, start, full)) == 0


def test_constant_labels_with_and_without_the_guard():
    scores, labels = jnp.asarray([[0.1, 0.2], [0.3, -0.4], [0.0, 0.5]]), jnp.full((3, 2), 0.5)
    assert np.isnan(losses.valence_arousal_loss(scores, labels))
    value, gradient = jax.value_and_grad(losses.valence_arousal_loss)(scores, labels, True)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(value, jnp.sum(jnp.mean((scores - labels) ** 2, axis=0)), rtol=1e-6)
    varied = jnp.asarray([[0.1, 0.2], [0.5, -0.4], [0.2, 0.5]])
    np.testing.assert_allclose(
        losses.valence_arousal_loss(scores, varied, True), losses.valence_arousal_loss(scores, varied), rtol=1e-6
    )


def test_penalty_is_zero_for_unbiased_people():
    members = grouping.everybody(jnp.asarray([3, 3, -1, 7, 7]))
    assert np.asarray(members.sum(1)).tolist() == [2, 0, 0, 2, 0]
    labels = jnp.zeros((5, 2))
    unbiased = jnp.asarray([[0.5, 1.0], [-0.5, -1.0], [9.0, 9.0], [0.1, 0.0], [-0.1, 0.0]])
    np.testing.assert_allclose(losses.residual_penalty(unbiased, labels, members), 0, atol=1e-12)
    biased = unbiased.at[:2].add(0.2)  # one of two people, both outputs: 0.04 / 2
    np.testing.assert_allclose(losses.residual_penalty(biased, labels, members), 0.02, rtol=1e-5)
