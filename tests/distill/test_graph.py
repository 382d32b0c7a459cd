"""MHGD against the golden file (values, gradients to modules and maps, one step), and what must hold of any graph."""

import functools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill import graph, kd_svd
from distill.align import align_by_cosine
from distill.modules import batch_norm
from tests.distill import golden
from tests.distill.golden import GRADIENTS, MODULE_GRADIENTS, close, compiled, flip

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


@compiled
def vectors_of(student, teacher, targets):
    """The student's raw vectors, those aligned with the stored ones of the teacher, the teacher's by us."""
    raw = [kd_svd.student_vectors(x, 4) for x in student]
    aligned = [align_by_cosine(v, target[..., None])[..., 0] for v, target in zip(raw, targets, strict=True)]
    return raw, aligned, [kd_svd.teacher_vectors(x, 1)[0][..., 0] for x in teacher]


def test_golden_vectors(stored):
    targets = listed(stored, "V_teacher{}")
    raw, aligned, found = vectors_of(listed(stored, "student_fm{}"), listed(stored, "teacher_fm{}"), targets)
    for i in POINTS:
        close(flip(raw[i], stored[f"V_student{i}_raw"]), stored[f"V_student{i}_raw"])
        close(flip(found[i], targets[i]), targets[i])
        close(aligned[i], stored[f"V_student{i}"])


@compiled
def attention(params, stats, teacher, student, noise):
    """The logits as the golden file names them, the estimate, the KL, the statistics after inference."""
    logits = {}
    for vectors, training, name in (
        (teacher, True, "train_teacher"),
        (teacher, False, "teacher"),
        (student, False, "student"),
    ):
        logits[name], new = graph.attention_logits(params, stats, *vectors, training)
    trained, moved = graph.attention_logits(params, stats, *teacher, training=True)
    maps = graph.drop_heads(jax.nn.softmax(trained, axis=-1), noise)
    estimate, _ = graph.estimate_back_vectors(params, moved, maps, teacher[0], training=True)
    return logits, estimate, graph.graph_kl(logits["student"], logits["teacher"]), new


def test_golden_attention(stored, networks):
    params, stats, noise = networks
    teacher, student = listed(stored, "V_teacher{}"), listed(stored, "V_student{}")
    for p in PAIRS:
        found = attention(params[p], stats[p], teacher[p : p + 2], student[p : p + 2], noise[p])
        logits, estimate, kl, new = found
        for name, values in logits.items():
            close(values, stored[f"attn_logits_{name}{p}"], name=name)
        close(estimate, stored[f"estimated_V_teacher{p}"])
        close(kl, stored[f"transfer_kl{p}"])
        golden.close_trees(new, stats[p], 0)


def test_golden_module_step(stored, networks):
    """Objective, gradients of all its parameters, and a Nesterov step with the statistics of BatchNorm."""
    params, stats, noise = networks
    vectors = listed(stored, "V_teacher{}")

    @compiled
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

    @compiled
    @jax.value_and_grad
    def loss(maps):
        student = [kd_svd.aligned_with(v, x)[..., 0] for v, x in zip(targets, maps, strict=True)]
        return graph.mhgd_transfer_loss(params, stats, student, [v[..., 0] for v in targets])

    value, slopes = loss(listed(stored, "student_fm{}"))
    close(value, stored["transfer_loss"])
    for i in POINTS:
        close(slopes[i], stored[f"dtransfer_dstudent_fm{i}"], GRADIENTS, f"map {i}")


@compiled
def example():
    """Networks as initialised, and unit vectors of student and teacher."""
    widths = (5, 7, 8)
    keys = jax.random.split(jax.random.key(0), 4)
    made = [graph.init_attention(key, *pair) for key, pair in zip(keys[:2], pairwise(widths), strict=True)]
    normal = [[jax.random.normal(jax.random.fold_in(key, w), (6, w)) for w in widths] for key in keys[2:]]
    student, teacher = jax.tree.map(lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True), normal)
    return [m[0] for m in made], [m[1] for m in made], student, teacher


def test_permuting_the_batch_permutes_every_graph():
    params, stats, student, _ = example()
    order = np.array([3, 1, 5, 0, 4, 2])
    logits = compiled(graph.attention_logits, static_argnames="training")
    for training in (False, True):
        found, permuted = (
            np.asarray(logits(params[0], stats[0], *vectors, training=training)[0])
            for vectors in (student[:2], [v[order] for v in student[:2]])
        )
        close(permuted, found[:, order][:, :, order])


def test_loss_is_zero_at_the_teacher_and_reaches_the_student_alone():
    params, stats, student, teacher = example()
    loss = compiled(jax.value_and_grad(graph.mhgd_transfer_loss, argnums=(0, 1, 2, 3)))
    value, (to_params, to_stats, usual, to_teacher) = loss(params, stats, student, teacher)
    for leaf in jax.tree.leaves([to_params, to_stats, to_teacher]):
        np.testing.assert_array_equal(leaf, 0)
    zero, (_, _, slopes, _) = loss(params, stats, teacher, teacher)
    assert abs(zero) < 1e-5
    for slope, other in zip(slopes, usual, strict=True):
        assert np.abs(slope).max() < 1e-5 * np.abs(other).max()
    plain = compiled(functools.partial(graph.mhgd_transfer_loss, squash=False))(params, stats, student, teacher)
    assert plain > value > 0


def test_head_drop_keeps_about_half():
    noise = np.random.default_rng(1).standard_normal((8, 500, 1)).astype(np.float32)
    kept = np.asarray(compiled(graph.drop_heads)(jnp.ones((8, 500, 500)), jnp.asarray(noise)))[:, :, 0]
    assert 0.45 < kept.mean() < 0.55
    assert np.all(kept.sum(0) >= 1)
    np.testing.assert_array_equal(kept, noise[..., 0] > noise.mean((0, 2))[None])


def test_batch_norm_stores_either_variance():
    x = jnp.asarray(np.random.default_rng(2).standard_normal((5, 3)), jnp.float32)
    params, stats = {"scale": jnp.ones(3), "bias": jnp.zeros(3)}, {"mean": jnp.zeros(3), "variance": jnp.zeros(3)}
    for unbiased in (True, False):
        y, new = compiled(lambda x, u=unbiased: batch_norm(params, stats, x, True, u))(x)
        np.testing.assert_allclose(new["variance"], 0.1 * np.var(np.asarray(x), axis=0, ddof=int(unbiased)), rtol=1e-5)
        np.testing.assert_allclose(np.std(np.asarray(y), axis=0), 1, rtol=1e-4)
