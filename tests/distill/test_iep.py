"""IEP against the golden file (values, gradients to modules and maps, one step), and what must hold of any batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill import graph, iep, svd
from distill.modules import kl_rows
from tests.distill import golden
from tests.distill.golden import GRADIENTS, MODULE_GRADIENTS, close

POINTS, PAIRS = range(3), range(2)
STATE = "Distillation/EKI/Stacked_PCA{}/Teacher_PCA/PCA_Graph/Incremental_PCA"


@pytest.fixture(scope="module")
def stored():
    return golden.load("iepkt")


def listed(stored, name):
    return [stored[name.format(i)] for i in POINTS]


def states(stored, kind="pca_state"):
    return [iep.PCA(*(stored[f"{kind}:{STATE.format(i)}/{part}"] for part in "MSV")) for i in POINTS]


def module(stored, kind, pair, stats=False):
    return golden.embedding_module(stored, f"{kind}:Distillation/EKI/EKI_module{pair + 1}", stats)


@pytest.fixture(scope="module")
def modules(stored):
    return [iep.Module(module(stored, "param", p), module(stored, "param", p, True)) for p in PAIRS]


def close_state(found, expected):
    """Components of a vanishing share are arbitrary."""
    close(found.mean, expected.mean)
    close(found.scale, expected.scale)
    sound = np.asarray(expected.scale[0] > 1e-3 * expected.scale[0, 0])
    close(found.basis[:, sound], expected.basis[:, sound])


def test_golden_plane(stored):
    plane, pull = jax.vjp(iep.sphere_to_plane, stored["plane_in"])
    close(plane, stored["plane_out"])
    close(pull(stored["plane_cotangent"])[0], stored["plane_grad"], GRADIENTS)


def test_golden_incremental_pca(stored):
    state = iep.incremental_pca_init(8)
    for t in range(3):
        state = jax.jit(iep.incremental_pca_update)(state, stored[f"ipca_X{t}"])
        close_state(state, iep.PCA(*(stored[f"ipca_after{t}_{part}"] for part in "MSV")))


def test_golden_projections(stored):
    for i, state in enumerate(states(stored)):
        found = svd.leading_triplet(svd.feature_matrix(stored[f"teacher_fm{i}"]))
        close(found.u, stored[f"teacher_U{i}"])
        close(found.v, stored[f"teacher_V{i}"])
        close(iep.sphere_to_plane(found.v[..., 0]), stored[f"teacher_plane{i}"])
        read = iep.read_by_teacher(stored[f"student_fm{i}"], found.u.reshape(stored[f"teacher_fm{i}"].shape[:3]))
        close(iep.sphere_to_plane(read), stored[f"student_plane{i}"])
        close(state.mean, stored[f"pca_mean{i}"])
        close(state.basis, stored[f"pca_basis{i}"])
        for who in ("teacher", "student"):
            p = iep.incremental_pca_project(state, stored[f"{who}_plane{i}"])
            close(p, stored[f"{who}_proj{i}"])
        close(iep.affinity(stored[f"teacher_proj{i}"]), stored[f"teacher_affinity{i}"])


def test_golden_message_passing(stored, modules):
    for p, made in enumerate(modules):
        head = made.params["black_box"], made.stats["black_box"]
        for training, who, name in (
            (True, "teacher", "train_teacher"),
            (False, "teacher", "teacher"),
            (False, "student", "student"),
        ):
            points = stored[f"{who}_proj{p}"], stored[f"{who}_proj{p + 1}"]
            found = iep.message_passing(made, *points, training)
            close(found.readout, stored[f"mpnn{p}_{name}_readout"])
            if not training:
                close(found.messages, stored[f"mpnn{p}_{name}_messages"])
            close(graph.attention_logits(*head, *points, training)[0], stored[f"attn{p}_{name}_logits"])
        points = stored[f"teacher_proj{p}"], stored[f"teacher_proj{p + 1}"]
        logits, stats = graph.attention_logits(*head, *points, True)
        extrinsic = iep.extrinsic_map(stored[f"mpnn{p}_teacher_messages"])[None]
        maps = graph.drop_heads(jnp.concatenate([jax.nn.softmax(logits, axis=-1), extrinsic]), stored[f"noise{p}"])
        estimated = graph.estimate_back_vectors(head[0], stats, maps, points[0], True)[0]
        close(estimated, stored[f"estimated_proj{p}"])


def test_golden_module_step(stored, modules):
    """Objective, gradients of all its parameters, and a Nesterov step with the statistics of BatchNorm and PCA."""
    noise = [stored[f"noise{p}"] for p in PAIRS]

    @jax.jit
    def step(params, stats, states):
        planes = [iep.sphere_to_plane(v[..., 0]) for v in listed(stored, "teacher_V{}")]
        projections = [iep.incremental_pca_project(*both) for both in zip(states, planes, strict=True)]

        def objective(params):
            made = [iep.Module(*both) for both in zip(params, stats, strict=True)]
            loss, new, terms = iep.iep_module_loss(made, projections, noise)
            return loss, (new, terms)

        (loss, (new, terms)), slope = jax.value_and_grad(objective, has_aux=True)(params)
        optimizer = optax.sgd(0.1, momentum=0.9, nesterov=True)
        updates, _ = optimizer.update(slope, optimizer.init(params), params)
        moved = [iep.incremental_pca_update(*both) for both in zip(states, planes, strict=True)]
        return loss, terms, slope, optax.apply_updates(params, updates), new, moved

    found = step([m.params for m in modules], [m.stats for m in modules], states(stored))
    loss, terms, slope, after, new, moved = found
    close(loss, stored["mha_objective_with_l2"])
    for i, term in enumerate(terms):
        close(term, stored[f"mha_term{i}"])
    for p in PAIRS:
        golden.close_trees(slope[p], module(stored, "grad_mha", p), MODULE_GRADIENTS)
        golden.close_trees(after[p], module(stored, "after_step", p))
        golden.close_trees(new[p], module(stored, "after_step", p, stats=True))
    for one, other in zip(moved, states(stored, "after_step"), strict=True):
        close_state(one, other)


def student_projections(maps, states, spatial):
    planes = [iep.sphere_to_plane(iep.read_by_teacher(x, u)) for x, u in zip(maps, spatial, strict=True)]
    return [iep.incremental_pca_project(*both) for both in zip(states, planes, strict=True)]


@functools.partial(jax.jit, static_argnums=4)
def transfer(modules, maps, states, knowledge, term):
    """(loss, gradients to the maps) of one term."""
    spatial, teacher = knowledge

    def loss(maps):
        return iep.iep_transfer_losses(modules, student_projections(maps, states, spatial), teacher, True)[term]

    return jax.value_and_grad(loss)(maps)


@pytest.mark.parametrize(("term", "name"), [("alteration", "alt"), ("interim", "int"), ("black_box", "blackbox")])
def test_golden_transfer(stored, modules, term, name):
    maps = listed(stored, "student_fm{}")
    spatial = [u.reshape(x.shape[:3]) for u, x in zip(listed(stored, "teacher_U{}"), maps, strict=True)]
    value, slopes = transfer(modules, maps, states(stored), (spatial, listed(stored, "teacher_proj{}")), term)
    close(value, stored[f"loss_{name}"])
    for i in POINTS:
        close(slopes[i], stored[f"d_{name}_dstudent_fm{i}"], GRADIENTS, f"map {i}")


def example(batch=6, seed=0):
    """Modules as initialised, PCA states after a batch, and projections of student and teacher."""
    keys = jax.random.split(jax.random.key(seed), 6)
    widths = (6, 8, 10)
    made = [iep.init_module(keys[p], widths[p] // 2, widths[p + 1] // 2, black_box=True) for p in PAIRS]
    planes = [[jax.random.normal(jax.random.fold_in(key, w), (batch, w)) for w in widths] for key in keys[2:4]]
    state = [iep.incremental_pca_update(iep.incremental_pca_init(y.shape[1]), y) for y in planes[0]]
    return made, *([iep.incremental_pca_project(*both) for both in zip(state, y, strict=True)] for y in planes)


def test_losses_are_zero_at_the_teacher_and_reach_the_student_alone():
    made, student, teacher = example()

    @functools.partial(jax.jit, static_argnums=3)
    def slopes(modules, student, teacher, term):
        return jax.grad(lambda *a: iep.iep_transfer_losses(*a, black_box=True)[term], argnums=(0, 1, 2))(
            modules, student, teacher
        )

    for term, value in iep.iep_transfer_losses(made, teacher, teacher, black_box=True).items():
        assert abs(value) < 1e-5
        to_modules, usual, to_teacher = slopes(made, student, teacher, term)
        for leaf in jax.tree.leaves([to_modules, to_teacher]):
            np.testing.assert_array_equal(leaf, 0)
        for slope, other in zip(slopes(made, teacher, teacher, term)[1], usual, strict=True):
            assert jnp.abs(slope).max() < 1e-5 * jnp.abs(other).max()


def test_permuting_the_batch_permutes_every_graph():
    made, student, _ = example()
    order = jnp.asarray([3, 1, 5, 0, 4, 2])
    for training in (False, True):
        found = iep.message_passing(made[0], *student[:2], training)
        permuted = iep.message_passing(made[0], *(p[order] for p in student[:2]), training)
        for one, other in zip(permuted[:2], found[:2], strict=True):
            close(one, other[order][:, order])


def test_message_passing_is_that_of_the_definition():
    """With all of E and z written out, as the paper has them."""
    made, student, _ = example()
    front, back = student[:2]
    params, stats = made[0]
    x = iep.l2_normalize(
        iep.batch_norm(params["edge_norm"], stats["edge_norm"], iep.dense(params["edge"], front), True)[0]
    )
    edges = back.shape[1] * x[:, None] * x[None]
    collected = []
    for _ in range(3):
        z = jnp.concatenate([back[:, None] - back[None], jnp.mean(edges, axis=-1, keepdims=True)], axis=-1)
        message, gate = (
            iep.batch_norm(params[f"{n}_norm"], stats[f"{n}_norm"], iep.dense(params[n], z), True)[0]
            for n in ("message", "gate")
        )
        collected.append(message * jax.nn.sigmoid(gate))
        edges = edges + collected[-1]
    found = iep.message_passing(made[0], front, back, True, iterations=3)
    close(found.readout, jnp.mean(edges, axis=-1))
    close(found.messages, jnp.concatenate(collected, axis=-1))


def test_maps_of_zeros_and_of_rank_one_have_finite_gradients():
    made, _, teacher = example(batch=4)
    maps = [jnp.abs(jax.random.normal(jax.random.key(w), (4, 3, 3, w))) for w in (6, 8, 10)]
    maps = [x.at[0].set(0).at[1].set(x[1, :1, :1]) for x in maps]
    found = [svd.leading_triplet(svd.feature_matrix(x)) for x in maps]
    spatial = [f.u.reshape(4, 3, 3) for f in found]
    states = [
        iep.incremental_pca_update(iep.incremental_pca_init(w), jax.random.normal(jax.random.key(w), (9, w)))
        for w in (6, 8, 10)
    ]
    for term in ("alteration", "interim", "black_box"):
        value, slopes = transfer(made, maps, states, (spatial, teacher), term)
        assert jnp.isfinite(value)
        for slope in slopes:
            assert jnp.all(jnp.isfinite(slope))
            assert jnp.abs(slope[1:]).max() < 1e3


def test_plane_of_the_center_and_of_its_opposite():
    center = jnp.full((1, 9), 1 / 3)
    close(iep.sphere_to_plane(center) + 1, jnp.ones((1, 9)))
    for x in (center, -center):
        assert jnp.all(jnp.isfinite(jax.jacrev(iep.sphere_to_plane)(x)))
    x = iep.l2_normalize(jax.random.normal(jax.random.key(0), (5, 9)))
    cosine = jnp.sum(x / 3, axis=1)  # a stereographic image lies at 2 tan(angle / 2)
    close(jnp.linalg.norm(iep.sphere_to_plane(x), axis=1), 2 * jnp.tan(jnp.arccos(cosine) / 2))


def test_first_batch_projects_to_zero_and_later_ones_find_the_components():
    """Many batches of one Gaussian: the components are those of all images together."""
    state = iep.incremental_pca_init(6)
    np.testing.assert_array_equal(iep.incremental_pca_project(state, jnp.ones((3, 6))), jnp.zeros((3, 3)))
    mixing = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0] * np.array([5, 3, 2, 0.3, 0.2, 0.1])
    update = jax.jit(iep.incremental_pca_update)
    for t in range(20):
        state = update(state, jax.random.normal(jax.random.key(t), (64, 6)) @ jnp.asarray(mixing.T, jnp.float32))
    overlap = np.abs(np.asarray(state.basis).T @ (mixing / np.linalg.norm(mixing, axis=0))[:, :3])
    assert np.all(np.diag(overlap) > 0.98)


def test_components_without_a_share_are_dropped_on_request():
    y = jax.random.normal(jax.random.key(0), (9, 2)) @ jax.random.normal(jax.random.key(1), (2, 8))
    state = iep.incremental_pca_update(iep.incremental_pca_init(8), y, rank_tol=1e-3)
    np.testing.assert_array_equal(state.basis[:, 2:], jnp.zeros((8, 2)))
    assert jnp.all(state.scale[:, :2] > 0)


def test_students_of_another_size_are_averaged_down():
    x, u = jax.random.normal(jax.random.key(0), (2, 8, 8, 3)), jax.random.normal(jax.random.key(1), (2, 4, 4))
    small = x.reshape(2, 4, 2, 4, 2, 3).mean((2, 4))
    close(iep.read_by_teacher(x, u), iep.read_by_teacher(small, u))
    wide = jnp.repeat(jnp.repeat(small, 2, axis=1), 2, axis=2)
    large = jax.random.normal(jax.random.key(2), (2, 8, 8))
    close(iep.read_by_teacher(small, large), iep.read_by_teacher(wide, large))


def test_kl():
    p, q = jnp.log(jnp.asarray([[0.2, 0.8], [0.5, 0.5]])), jnp.log(jnp.asarray([[0.6, 0.4], [0.5, 0.5]]))
    np.testing.assert_allclose(kl_rows(p + 3, q), 0.2 * np.log(0.2 / 0.6) + 0.8 * np.log(2), rtol=1e-5)


def test_embedding_procedure():
    made, student, _ = example()
    shown = iep.embedding_procedure(made, student)
    assert [x.shape for x in shown.positions] == [(6, 2)] * 3
    assert [x.shape for x in shown.affinity] == [(6, 6)] * 3
    for p in PAIRS:
        messages = iep.message_passing(made[p], *student[p : p + 2], False).messages
        halves = np.split(np.asarray(messages), 2, axis=-1)
        close(shown.alteration[p], sum(half.mean(axis=-1) for half in halves))
