"""The inner loop's options on a tiny network: 16 x 16 pixels, 4 filters, 3-way 1-shot, 2 steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import cxgrad
from fewshot.adaptation import InnerLoop, Task, adapt, predict, task_loss
from fewshot.convolution import CONVOLUTIONS
from fewshot.models import Conv4

NETWORK = Conv4(3, 4, dtype=jnp.dtype("float32"), conv=CONVOLUTIONS["patches"])
MAML = InnerLoop("maml", num_steps=2, learning_rate=0.1)
CXGRAD = InnerLoop("cxgrad", num_steps=2, learning_rate=0.01, context_size=6)


@functools.cache
def task():
    keys = jax.random.split(jax.random.key(0))
    support, query = jax.random.normal(keys[0], (3, 16, 16, 3)), jax.random.normal(keys[1], (6, 16, 16, 3))
    return Task(support, jnp.arange(3), query, jnp.repeat(jnp.arange(3), 2))


@functools.cache
def parameters():
    net = NETWORK.init(jax.random.key(1), task().support_images)["params"]
    return {"net": net, "generator": cxgrad.init_generator(jax.random.key(2), 6, 4)}


@functools.cache
def adapted(spec):
    run = jax.jit(lambda params, images, labels: adapt(spec, NETWORK.apply, params, images, labels))
    return run(parameters(), task().support_images, task().support_labels)


@pytest.mark.parametrize(("mask", "moving"), [("head", {"head"}), ("backbone", {"conv0", "conv1", "conv2", "conv3"})])
def test_only_the_chosen_part_adapts(mask, moving):
    result = adapted(dataclasses.replace(MAML, adapted=mask))
    assert {path.split("/")[0] for path in result.theta} == moving
    for path, leaf in result.theta.items():
        layer, name = path.split("/")
        assert not jnp.array_equal(leaf, parameters()["net"][layer][name])
    for path, leaf in result.omega.items():
        layer, name = path.split("/")
        assert jnp.array_equal(leaf, parameters()["net"][layer][name])


def test_context_off_keeps_it_at_zero_and_the_factors_constant():
    trace = adapted(dataclasses.replace(CXGRAD, context="off")).trace
    assert trace["context"].shape == (3, 6)
    assert (trace["context"] == 0).all()
    expected = cxgrad.scale_factors(parameters()["generator"], jnp.zeros(6))
    np.testing.assert_allclose(trace["factors"], jnp.stack([expected, expected]), rtol=1e-6)


def test_learned_context_moves():
    assert (jnp.abs(adapted(CXGRAD).trace["context"]).max(axis=1) > 0).all()


def test_scaling_fixed_one_is_weight_normalisation():
    trace = adapted(dataclasses.replace(CXGRAD, scaling="fixed_one")).trace
    assert (trace["factors"] == 1).all()
    assert (trace["context"] == 0).all()


@pytest.mark.slow
def test_scan_unrolled_and_remat_give_the_same_meta_gradient():
    def meta_gradient(spec):
        return jax.jit(jax.grad(lambda params: task_loss(spec, NETWORK.apply, params, task())[0]))(parameters())

    variants = ({"scan": True}, {"scan": False}, {"scan": True, "remat": True})
    reference, *others = (meta_gradient(dataclasses.replace(CXGRAD, **variant)) for variant in variants)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(reference))
    for other in others:
        differences = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), reference, other)
        assert max(jax.tree.leaves(differences)) <= 1e-5 * largest


@pytest.mark.parametrize(("batch_norm", "independent"), [("support_stats", True), ("batch", False)])
def test_support_statistics_make_a_query_independent_of_the_others(batch_norm, independent):
    spec = dataclasses.replace(MAML, batch_norm=batch_norm)
    theta, omega = adapted(MAML).theta, adapted(MAML).omega
    queries = task().query_images
    others = queries.at[1:].set(5 - 3 * queries[1:])

    def logits(images):
        return predict(spec, NETWORK.apply, theta, omega, images, task().support_images, 1).logits[0]

    close = np.allclose(logits(queries), logits(others), rtol=1e-5, atol=1e-6)
    assert close == independent
