"""Label propagation: the golden values and gradients, and what must hold of any propagation."""

import functools

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


# Not compiled as one, every operation would be a program of its own.
propagate = jax.jit(lp.propagate, static_argnums=(0, 4))
affinity = jax.jit(lp.affinity, static_argnums=2)

pytestmark = pytest.mark.usefixtures("little_optimization")


@functools.cache
def program(spec, support, num_classes):
    """(features, sigma, labels) -> everything that the golden file has of a variant."""

    def loss(features, sigma, labels):
        scores = lp.propagate(spec, features, sigma, labels[:support], num_classes)
        return maml.cross_entropy(scores, labels), scores

    def run(features, sigma, labels):
        with_gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (value, scores), gradient = with_gradient(features, sigma, labels)
        query = scores[support:]
        return {
            "W": lp.graph(spec, features, sigma),
            "mask": lp.neighbour_mask(lp.affinity(features, sigma, spec.keep_diagonal), spec.neighbours),
            "F": scores,
            "pseudo_soft": lp.soft_labels(query),
            "pseudo_hard": jnp.argmax(lp.hard_labels(query), axis=1),
            "query_accuracy": jnp.mean(jnp.argmax(query, axis=1) == labels[support:], dtype=query.dtype),
            "loss_cross_entropy_on_F": value,
            "grad_features": gradient[0],
            "grad_sigma": gradient[1],
        }

    return jax.jit(run)


def results(variant, dtype):
    """{name: (ours, golden)}."""
    data, spec = official.golden("label_propagation"), VARIANTS[variant]
    assert (float(data["alpha"]), float(data["eps"])) == (spec.alpha, lp.EPSILON)
    assert int(data["k"]) == VARIANTS["knn"].neighbours
    features = jnp.asarray(data["features"], dtype)
    sigma = jnp.asarray(data["sigma"] if variant in ("knn_sigma", "tpn") else 0.8, dtype)
    if variant == "knn":  # the same length scale for every image; so the program is that of "knn_sigma"
        sigma = jnp.broadcast_to(sigma, len(features))
    found = program(spec, int(data["num_support"]), int(data["num_classes"]))(features, sigma, data["labels"])
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
    scaled = np.asarray(z / sigma[:, None])
    distance = np.mean((scaled[:, None] - scaled[None]) ** 2, axis=-1)
    np.testing.assert_allclose(affinity(z, sigma, True), np.exp(-distance / 2), rtol=1e-12)
    np.testing.assert_array_equal(np.diag(affinity(z, sigma)), 0.0)


def test_without_flow_labels_stay_where_they_are():
    z, sigma = inputs()
    scores = propagate(lp.Propagation(5, alpha=0.0), z, sigma, jnp.arange(4), 4)
    np.testing.assert_array_equal(scores, jnp.eye(20, 4))
    np.testing.assert_array_equal(lp.soft_labels(scores)[4:], 0.25)  # reached by no label: the same for every class
    nearly = propagate(lp.Propagation(5, alpha=1e-4), z, sigma, jnp.arange(4), 4)
    np.testing.assert_allclose(nearly, scores, atol=1e-3)


@pytest.mark.parametrize("neighbours", [0, 6])
def test_order_of_the_queries_does_not_matter(neighbours, float64):
    z, sigma = inputs()
    spec, order = lp.Propagation(neighbours), np.r_[:4, 4 + np.random.default_rng(1).permutation(16)]
    scores = propagate(spec, z, sigma, jnp.arange(4), 4)
    again = propagate(spec, z[order], sigma[order], jnp.arange(4), 4)
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

    (_, labels), gradient = jax.jit(jax.value_and_grad(entropy, has_aux=True))(z)
    np.testing.assert_allclose(labels.sum(axis=1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(labels[10:], 0.25)
    assert (labels >= 0).all()
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("neighbours", [0, 5])
def test_links_of_any_weakness_give_finite_gradients(neighbours):
    """From affinities near 1 down to those that underflow, where 1 / F is near the largest number or beyond."""
    z = inputs(d=4)[0]
    weights = jax.random.normal(jax.random.key(0), (16, 4))

    @jax.jit
    @jax.grad
    def gradient(sigma):
        scores = lp.propagate(lp.Propagation(neighbours), z, sigma, jnp.arange(4), 4)
        return jnp.sum(weights * lp.soft_labels(scores[4:]))

    for sigma in np.geomspace(0.02, 1.0, 60, dtype=np.float32):
        assert jnp.isfinite(gradient(sigma)), sigma


def test_weak_links_lose_no_digits(float64):
    """Between two groups the affinity is 1e-6 of that within; float32 agrees with float64 entry by entry."""
    z, _ = inputs()
    z = z.at[10:].add(5.0)
    spec = lp.Propagation(0)
    wide = propagate(spec, z, jnp.asarray(1.0), jnp.arange(4), 4)
    narrow = propagate(spec, z.astype(jnp.float32), jnp.asarray(1.0, jnp.float32), jnp.arange(4), 4)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, rtol=2e-4)
    low = jax.eval_shape(lambda z: lp.propagate(spec, z, jnp.asarray(1.0), jnp.arange(4), 4), z.astype(jnp.bfloat16))
    assert low.dtype == jnp.float32


def test_no_array_holds_a_number_per_pair_and_feature():
    n, d = 20, 300
    program = jax.make_jaxpr(lambda z: lp.propagate(lp.Propagation(5), z, jnp.asarray(1.0), jnp.arange(4), 4))
    sizes = [variable.aval.size for line in program(jnp.ones((n, d))).eqns for variable in line.outvars]
    assert max(sizes) <= n * d
