"""MHGD against the golden file (values, gradients to modules and maps, one step), and what must hold of any graph."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill import graph, kd_svd
from distill.align import align_by_cosine
from distill.modules import batch_norm
from tests.distill import golden
from tests.distill.golden import GRADIENTS, MODULE_GRADIENTS, close, flip

POINTS, PAIRS = range(3), range(2)


def module(stored, kind, pair, stats=False):
    """Parameters, or statistics, of one network under our names; `kind` is "param", "grad_mha" or "after_step"."""
    return golden.attention(stored, f"{kind}:Distillation/MHGD/MHA{pair + 1}", stats)


@pytest.fixture(scope="module")
def stored():
    return golden.load("mhgd")


@pytest.fixture(scope="module")
def networks(stored):
    """(parameters, statistics, noise) of both networks."""
    return (
        [module(stored, "param", p) for p in PAIRS],
        [module(stored, "param", p, True) for p in PAIRS],
        [stored[f"noise{p}"] for p in PAIRS],
    )


def listed(stored, name):
    return [stored[name.format(i)] for i in POINTS]


def test_golden_vectors(stored):
    for i in POINTS:
        raw = kd_svd.student_vectors(stored[f"student_fm{i}"], 4)
        close(flip(raw, stored[f"V_student{i}_raw"]), stored[f"V_student{i}_raw"])
        target = kd_svd.teacher_vectors(stored[f"teacher_fm{i}"], 1)[0]
        close(flip(target, stored[f"V_teacher{i}"][..., None])[..., 0], stored[f"V_teacher{i}"])
        close(align_by_cosine(raw, stored[f"V_teacher{i}"][..., None])[..., 0], stored[f"V_student{i}"])


def test_golden_attention(stored, networks):
    params, stats, noise = networks
    teacher, student = listed(stored, "V_teacher{}"), listed(stored, "V_student{}")
    for p in PAIRS:
        for vectors, training, name in (
            (teacher, True, "train_teacher"),
            (teacher, False, "teacher"),
            (student, False, "student"),
        ):
            logits, new = graph.attention_logits(params[p], stats[p], vectors[p], vectors[p + 1], training)
            close(logits, stored[f"attn_logits_{name}{p}"], name=name)
            if not training:
                assert new == stats[p]
        logits, new = graph.attention_logits(params[p], stats[p], teacher[p], teacher[p + 1], training=True)
        maps = graph.drop_heads(jax.nn.softmax(logits, axis=-1), noise[p])
        close(graph.estimate_back_vectors(params[p], new, maps, teacher[p], True)[0], stored[f"estimated_V_teacher{p}"])
        logits = [
            graph.attention_logits(params[p], stats[p], v[p], v[p + 1], training=False)[0] for v in (student, teacher)
        ]
        close(graph.graph_kl(*logits), stored[f"transfer_kl{p}"])


def test_golden_module_step(stored, networks):
    """Objective, gradients of all its parameters, and a Nesterov step with the statistics of BatchNorm."""
    params, stats, noise = networks
    vectors = listed(stored, "V_teacher{}")

    @jax.jit
    def step(params, stats):
        def objective(params):
            loss, new, terms = graph.mhgd_module_loss(params, stats, vectors, noise)
            return loss, (new, terms)

        (loss, (new, terms)), slope = jax.value_and_grad(objective, has_aux=True)(params)
        optimizer = optax.sgd(0.1, momentum=0.9, nesterov=True)
        updates, _ = optimizer.update(slope, optimizer.init(params), params)
        return loss, terms, slope, optax.apply_updates(params, updates), new

    loss, terms, slope, after, new = step(params, stats)
    close(loss, stored["mha_objective_with_l2"])
    for p in PAIRS:
        close(terms[p], stored[f"mha_loss{p}"])
        golden.close_trees(slope[p], module(stored, "grad_mha", p), MODULE_GRADIENTS)
        golden.close_trees(after[p], module(stored, "after_step", p))
        golden.close_trees(new[p], module(stored, "after_step", p, stats=True))


def test_golden_transfer(stored, networks):
    params, stats, _ = networks
    targets = [v[..., None] for v in listed(stored, "V_teacher{}")]

    @jax.jit
    @jax.value_and_grad
    def loss(maps):
        student = [kd_svd.aligned_with(v, x)[..., 0] for v, x in zip(targets, maps, strict=True)]
        return graph.mhgd_transfer_loss(params, stats, student, [v[..., 0] for v in targets])

    value, slopes = loss(listed(stored, "student_fm{}"))
    close(value, stored["transfer_loss"])
    for i in POINTS:
        close(slopes[i], stored[f"dtransfer_dstudent_fm{i}"], GRADIENTS, f"map {i}")


@functools.lru_cache
def example(batch=6, widths=(5, 7, 8), seed=0):
    """Networks as initialised, and unit vectors of student and teacher."""
    keys = jax.random.split(jax.random.key(seed), 4)
    made = [
        graph.init_attention(key, *pair)
        for key, pair in zip(keys[:2], zip(widths, widths[1:], strict=False), strict=True)
    ]
    normal = [
        [jax.random.normal(jax.random.fold_in(key, i), (batch, w)) for i, w in enumerate(widths)] for key in keys[2:]
    ]
    student, teacher = jax.tree.map(lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True), normal)
    return [m[0] for m in made], [m[1] for m in made], student, teacher


def test_permuting_the_batch_permutes_every_graph():
    params, stats, student, _ = example()
    order = jnp.asarray([3, 1, 5, 0, 4, 2])
    for training in (False, True):
        logits = graph.attention_logits(params[0], stats[0], *student[:2], training)[0]
        permuted = graph.attention_logits(params[0], stats[0], *(v[order] for v in student[:2]), training)[0]
        close(permuted, logits[:, order][:, :, order])


def test_loss_is_zero_at_the_teacher_and_reaches_the_student_alone():
    params, stats, student, teacher = example()
    slopes = jax.jit(jax.grad(graph.mhgd_transfer_loss, argnums=(0, 1, 2, 3)))
    for leaf in jax.tree.leaves([slopes(params, stats, student, teacher)[k] for k in (0, 1, 3)]):
        np.testing.assert_array_equal(leaf, 0)
    usual = jax.tree.leaves(slopes(params, stats, student, teacher)[2])
    for slope, other in zip(jax.tree.leaves(slopes(params, stats, teacher, teacher)[2]), usual, strict=True):
        assert jnp.abs(slope).max() < 1e-5 * jnp.abs(other).max()
    assert abs(graph.mhgd_transfer_loss(params, stats, teacher, teacher)) < 1e-5
    plain = graph.mhgd_transfer_loss(params, stats, student, teacher, squash=False)
    assert plain > graph.mhgd_transfer_loss(params, stats, student, teacher)


def test_head_drop_keeps_about_half():
    noise = jax.random.normal(jax.random.key(1), (8, 500, 1))
    kept = graph.drop_heads(jnp.ones((8, 500, 500)), noise)[:, :, 0]
    assert 0.45 < float(jnp.mean(kept)) < 0.55
    assert jnp.all(jnp.sum(kept, axis=0) >= 1)
    np.testing.assert_array_equal(kept, noise[..., 0] > jnp.mean(noise, axis=(0, 2))[None])


def test_batch_norm_stores_either_variance():
    x = jnp.asarray(np.random.default_rng(2).standard_normal((5, 3)), jnp.float32)
    params, stats = {"scale": jnp.ones(3), "bias": jnp.zeros(3)}, {"mean": jnp.zeros(3), "variance": jnp.zeros(3)}
    for unbiased in (True, False):
        y, new = batch_norm(params, stats, x, True, unbiased)
        np.testing.assert_allclose(new["variance"], 0.1 * np.var(np.asarray(x), axis=0, ddof=int(unbiased)), rtol=1e-5)
        np.testing.assert_allclose(np.std(np.asarray(y), axis=0), 1, rtol=1e-4)
