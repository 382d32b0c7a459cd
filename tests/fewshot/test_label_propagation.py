"""Label propagation: the golden values and gradients, and what must hold of any propagation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import label_propagation as lp
from fewshot import maml
from tests.fewshot import official

VARIANTS = {
    "dense": lp.Propagation(neighbours=0),
    "knn": lp.Propagation(neighbours=10),
    "knn_sigma": lp.Propagation(neighbours=10),
    "tpn": lp.Propagation(neighbours=10, keep_diagonal=True),
}


def results(variant, dtype):
    """Everything that the golden file has of a variant."""
    data, spec = official.golden("label_propagation"), VARIANTS[variant]
    assert (float(data["alpha"]), float(data["eps"])) == (spec.alpha, lp.EPSILON)
    features = jnp.asarray(data["features"], dtype)
    per_image = variant in ("knn_sigma", "tpn")
    sigma = jnp.asarray(data["sigma"] if per_image else 0.8, dtype)
    labels, support = jnp.asarray(data["labels"]), int(data["num_support"])

    @jax.jit
    def loss(features, sigma):
        scores = lp.propagate(spec, features, sigma, labels[:support], int(data["num_classes"]))
        return maml.cross_entropy(scores, labels), scores

    (value, scores), gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(features, sigma)
    query = scores[support:]
    found = {
        "W": lp.graph(spec, features, sigma),
        "mask": lp.neighbour_mask(lp.affinity(features, sigma, spec.keep_diagonal), spec.neighbours),
        "F": scores,
        "pseudo_soft": lp.soft_labels(query),
        "pseudo_hard": jnp.argmax(lp.hard_labels(query), axis=1),
        "query_accuracy": np.mean(np.asarray(jnp.argmax(query, axis=1)) == data["labels"][support:]),
        "loss_cross_entropy_on_F": value,
        "grad_features": gradient[0],
        "grad_sigma": gradient[1],
    }
    expected = {name: data[f"{variant}/{name}"] for name in found if f"{variant}/{name}" in data}
    prefix = f"{variant}/"
    assert {key for key in data if key.startswith(prefix)} == {prefix + name for name in expected}
    return {name: (np.asarray(found[name]), array) for name, array in expected.items()}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "values", "gradients"), [(np.float64, 1e-9, 1e-9), (np.float32, 2e-5, 1e-3)])
def test_equals_golden(variant, dtype, values, gradients):
    with jax.enable_x64(dtype is np.float64):
        pairs = results(variant, dtype)
    for name in ("mask", "pseudo_hard"):
        if name in pairs:
            np.testing.assert_array_equal(*pairs.pop(name))
    for name, pair in pairs.items():
        assert official.error(*pair) <= (gradients if "grad" in name else values), name


# --- properties -----------------------------------------------------------------------------------------------------


def inputs(n=20, d=7, seed=0):
    random = np.random.default_rng(seed)
    return jnp.asarray(random.standard_normal((n, d))), jnp.asarray(random.uniform(0.6, 1.4, n))


def test_affinity_equals_the_definition(float64):
    z, sigma = inputs()
    scaled = z / sigma[:, None]
    distance = jnp.mean((scaled[:, None] - scaled[None]) ** 2, axis=-1)
    np.testing.assert_allclose(lp.affinity(z, sigma, True), jnp.exp(-distance / 2), rtol=1e-12)
    np.testing.assert_array_equal(jnp.diag(lp.affinity(z, sigma)), 0.0)


def test_without_flow_labels_stay_where_they_are():
    z, sigma = inputs()
    scores = lp.propagate(lp.Propagation(5, alpha=0.0), z, sigma, jnp.arange(4), 4)
    np.testing.assert_array_equal(scores, jnp.eye(20, 4))
    np.testing.assert_array_equal(lp.soft_labels(scores)[4:], 0.25)  # reached by no label: the same for every class
    nearly = lp.propagate(lp.Propagation(5, alpha=1e-4), z, sigma, jnp.arange(4), 4)
    np.testing.assert_allclose(nearly, scores, atol=1e-3)


@pytest.mark.parametrize("neighbours", [0, 6])
def test_order_of_the_queries_does_not_matter(neighbours, float64):
    z, sigma = inputs()
    spec, order = lp.Propagation(neighbours), np.r_[:4, 4 + np.random.default_rng(1).permutation(16)]
    scores = lp.propagate(spec, z, sigma, jnp.arange(4), 4)
    again = lp.propagate(spec, z[order], sigma[order], jnp.arange(4), 4)
    np.testing.assert_allclose(again, scores[order], rtol=1e-10)


def test_ties_take_the_lowest_index_and_either_side_is_enough():
    mask = lp.neighbour_mask(jnp.ones((4, 4)), 1)
    expected = np.zeros((4, 4), bool)
    expected[:, 0] = expected[0, :] = True
    np.testing.assert_array_equal(mask, expected)
    assert lp.neighbour_mask(jnp.ones((4, 4)), 0).all()
    with pytest.raises(ValueError, match=r"neighbours is 5, but must lie in 0\.\.4"):
        lp.neighbour_mask(jnp.ones((4, 4)), 5)


def test_images_far_from_all_others_give_finite_labels_and_gradients():
    z = inputs()[0].at[10:].add(1e3)  # two groups, one without a support image; and one image all alone
    z = z.at[19].set(-1e4)

    def entropy(z):
        labels = lp.soft_labels(lp.propagate(lp.Propagation(5), z, jnp.asarray(1.0), jnp.arange(4), 4))
        return -jnp.sum(labels * jnp.log(labels + 1e-6)), labels

    (_, labels), gradient = jax.value_and_grad(entropy, has_aux=True)(z)
    np.testing.assert_allclose(labels.sum(axis=1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(labels[10:], 0.25)
    assert (labels >= 0).all()
    assert jnp.isfinite(gradient).all()


def test_weak_links_lose_no_digits(float64):
    """Between two groups the affinity is 1e-6 of that within; float32 agrees with float64 entry by entry."""
    z, _ = inputs()
    z = z.at[10:].add(5.0)
    spec = lp.Propagation(0)
    wide = lp.propagate(spec, z, jnp.asarray(1.0), jnp.arange(4), 4)
    narrow = lp.propagate(spec, z.astype(jnp.float32), jnp.asarray(1.0, jnp.float32), jnp.arange(4), 4)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, rtol=2e-4)
    assert lp.propagate(spec, z.astype(jnp.bfloat16), jnp.asarray(1.0), jnp.arange(4), 4).dtype == jnp.float32


def test_no_array_holds_a_number_per_pair_and_feature():
    n, d = 20, 300
    program = jax.make_jaxpr(lambda z: lp.propagate(lp.Propagation(5), z, jnp.asarray(1.0), jnp.arange(4), 4))
    sizes = [variable.aval.size for line in program(jnp.ones((n, d))).eqns for variable in line.outvars]
    assert max(sizes) <= n * d
