"""IEP against the golden file (values, gradients to modules and maps, one step), and what must hold of any batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill import graph, iep, svd
from distill.modules import batch_norm, dense, kl_rows
from distill.pairing import l2_normalize
from tests.distill import golden
from tests.distill.golden import GRADIENTS, MODULE_GRADIENTS, close, compiled

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
        state = compiled(iep.incremental_pca_update)(state, stored[f"ipca_X{t}"])
        close_state(state, iep.PCA(*(stored[f"ipca_after{t}_{part}"] for part in "MSV")))


@compiled
def projections_of(student, teacher, states):
    """Of one point: leading vectors of the teacher, planes and projections of both."""
    found = svd.leading_triplet(svd.feature_matrix(teacher))
    read = iep.read_by_teacher(student, found.u.reshape(teacher.shape[:3]))
    planes = {"teacher": iep.sphere_to_plane(found.v[..., 0]), "student": iep.sphere_to_plane(read)}
    return found, planes, {who: iep.incremental_pca_project(states, y) for who, y in planes.items()}


def test_golden_projections(stored):
    for i, state in enumerate(states(stored)):
        found, planes, projections = projections_of(stored[f"student_fm{i}"], stored[f"teacher_fm{i}"], state)
        close(found.u, stored[f"teacher_U{i}"])
        close(found.v, stored[f"teacher_V{i}"])
        close(state.mean, stored[f"pca_mean{i}"])
        close(state.basis, stored[f"pca_basis{i}"])
        for who in ("teacher", "student"):
            close(planes[who], stored[f"{who}_plane{i}"])
            close(projections[who], stored[f"{who}_proj{i}"])
        close(compiled(iep.affinity)(stored[f"teacher_proj{i}"]), stored[f"teacher_affinity{i}"])


@compiled
def messages_of(made, teacher, student, noise):
    """Message passing and attention as the golden file names them, and the estimate."""
    head = made.params["black_box"], made.stats["black_box"]
    found = {}
    for training, points, name in (
        (True, teacher, "train_teacher"),
        (False, teacher, "teacher"),
        (False, student, "student"),
    ):
        logits, stats = graph.attention_logits(*head, *points, training)
        found[name] = iep.message_passing(made, *points, training), logits
        if training:
            moved = stats
    maps = jax.nn.softmax(found["train_teacher"][1], axis=-1)
    maps = jnp.concatenate([maps, iep.extrinsic_map(found["teacher"][0].messages)[None]])
    return found, graph.estimate_back_vectors(head[0], moved, graph.drop_heads(maps, noise), teacher[0], True)[0]


def test_golden_message_passing(stored, modules):
    for p, made in enumerate(modules):
        points = {who: [stored[f"{who}_proj{p + k}"] for k in (0, 1)] for who in ("teacher", "student")}
        found, estimated = messages_of(made, points["teacher"], points["student"], stored[f"noise{p}"])
        for name, (carried, logits) in found.items():
            close(carried.readout, stored[f"mpnn{p}_{name}_readout"])
            close(logits, stored[f"attn{p}_{name}_logits"])
            if name != "train_teacher":
                close(carried.messages, stored[f"mpnn{p}_{name}_messages"])
        close(estimated, stored[f"estimated_proj{p}"])


def test_golden_module_step(stored, modules):
    """Objective, gradients of all its parameters, and a Nesterov step with the statistics of BatchNorm and PCA."""
    noise = [stored[f"noise{p}"] for p in PAIRS]

    @compiled
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


TERMS = {"alteration": "alt", "interim": "int", "black_box": "blackbox"}


@compiled
def transfer(modules, maps, states, knowledge):
    """{term: (loss, gradients to the maps)}, and the gradients of all terms to modules and teacher."""
    spatial, teacher = knowledge

    def losses(maps, modules, teacher):
        found = iep.iep_transfer_losses(modules, student_projections(maps, states, spatial), teacher, True)
        return tuple(found[term] for term in TERMS)

    values, pull = jax.vjp(losses, maps, modules, teacher)
    pulled = [pull(tuple(jnp.asarray(unit) for unit in row)) for row in np.eye(len(TERMS), dtype=values[0].dtype)]
    found = {term: (value, each[0]) for term, value, each in zip(TERMS, values, pulled, strict=True)}
    return found, [each[1:] for each in pulled]


def test_golden_transfer(stored, modules):
    maps = listed(stored, "student_fm{}")
    spatial = [u.reshape(x.shape[:3]) for u, x in zip(listed(stored, "teacher_U{}"), maps, strict=True)]
    found, others = transfer(modules, maps, states(stored), (spatial, listed(stored, "teacher_proj{}")))
    for leaf in jax.tree.leaves(others):
        np.testing.assert_array_equal(leaf, 0)
    for term, (value, slopes) in found.items():
        close(value, stored[f"loss_{TERMS[term]}"])
        for i in POINTS:
            close(slopes[i], stored[f"d_{TERMS[term]}_dstudent_fm{i}"], GRADIENTS, f"{term}, map {i}")


@compiled
def example():
    """Modules as initialised, and projections of student and teacher, with a PCA of the student's batch."""
    keys = jax.random.split(jax.random.key(0), 4)
    widths = (6, 8, 10)
    made = [iep.init_module(keys[p], widths[p] // 2, widths[p + 1] // 2, black_box=True) for p in PAIRS]
    planes = [[jax.random.normal(jax.random.fold_in(key, w), (6, w)) for w in widths] for key in keys[2:4]]
    state = [iep.incremental_pca_update(iep.incremental_pca_init(y.shape[1]), y) for y in planes[0]]
    return made, *([iep.incremental_pca_project(*both) for both in zip(state, y, strict=True)] for y in planes)


def everything(teacher, states):
    """What `transfer` needs to know of a teacher's maps: spatial vectors and projections."""
    found = [projections_of(x, x, state) for x, state in zip(teacher, states, strict=True)]
    spatial = [each[0].u.reshape(x.shape[:3]) for each, x in zip(found, teacher, strict=True)]
    return spatial, [each[2]["teacher"] for each in found]


def test_the_teacher_itself_has_no_loss_and_no_gradient(stored, modules):
    """From the maps on: the student is read with the teacher's spatial vectors, the teacher decomposed."""
    maps = listed(stored, "teacher_fm{}")
    knowledge = everything(maps, states(stored))
    found, _ = transfer(modules, maps, states(stored), knowledge)
    usual, _ = transfer(modules, listed(stored, "student_fm{}"), states(stored), knowledge)
    for term, (value, slopes) in found.items():
        assert abs(value) < 1e-5 * usual[term][0], term
        for slope, other in zip(slopes, usual[term][1], strict=True):
            assert np.abs(slope).max() < 1e-4 * np.abs(other).max(), term


passing = compiled(iep.message_passing, static_argnames=("training", "iterations"))


def test_permuting_the_batch_permutes_every_graph():
    made, student, _ = example()
    order = np.array([3, 1, 5, 0, 4, 2])
    for training in (False, True):
        found = passing(made[0], *student[:2], training=training)
        permuted = passing(made[0], *(p[order] for p in student[:2]), training=training)
        for one, other in zip(permuted[:2], map(np.asarray, found[:2]), strict=True):
            close(one, other[order][:, order])


def test_message_passing_is_that_of_the_definition():
    """With all of E and z written out, as the paper has them."""
    made, student, _ = example()
    front, back = student[:2]

    @compiled
    def written_out(params, stats):
        def layer(name, x):
            return batch_norm(params[f"{name}_norm"], stats[f"{name}_norm"], dense(params[name], x), True)[0]

        x = l2_normalize(layer("edge", front))
        edges = back.shape[1] * x[:, None] * x[None]
        collected = []
        for _ in range(3):
            z = jnp.concatenate([back[:, None] - back[None], jnp.mean(edges, axis=-1, keepdims=True)], axis=-1)
            collected.append(layer("message", z) * jax.nn.sigmoid(layer("gate", z)))
            edges = edges + collected[-1]
        return jnp.mean(edges, axis=-1), jnp.concatenate(collected, axis=-1)

    found = passing(made[0], front, back, training=True, iterations=3)
    for one, other in zip(found, written_out(*made[0]), strict=False):
        close(one, other)


def test_maps_of_zeros_and_of_rank_one_have_finite_gradients(stored, modules):
    maps = [np.array(x) for x in listed(stored, "teacher_fm{}")]
    for x in maps:
        x[0], x[1] = 0, x[1, :1, :1]
    maps = [jnp.asarray(x) for x in maps]
    for student in (listed(stored, "student_fm{}"), maps):
        found, _ = transfer(modules, student, states(stored), everything(maps, states(stored)))
        for value, slopes in found.values():
            assert np.isfinite(value)
            for slope in map(np.asarray, slopes):
                assert np.all(np.isfinite(slope))
                assert np.abs(slope[1:]).max() < 1e3


def test_plane_of_the_center_and_of_its_opposite():
    plane = compiled(iep.sphere_to_plane)
    center = jnp.full((1, 9), 1 / 3)
    np.testing.assert_allclose(plane(center), np.zeros((1, 9)), atol=1e-6)
    slopes = compiled(jax.jacrev(iep.sphere_to_plane))
    for x in (center, -center):
        assert np.all(np.isfinite(slopes(x)))
    x = np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cosine = x.sum(1) / 3  # a stereographic image lies at 2 tan(angle / 2)
    close(np.linalg.norm(plane(jnp.asarray(x)), axis=1), 2 * np.tan(np.arccos(cosine) / 2))


def test_first_batch_projects_to_zero_and_later_ones_find_the_components():
    """Many batches of one Gaussian: the components are those of all images together."""
    state = iep.incremental_pca_init(6)
    np.testing.assert_array_equal(compiled(iep.incremental_pca_project)(state, jnp.ones((3, 6))), np.zeros((3, 3)))
    mixing = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0] * np.array([5, 3, 2, 0.3, 0.2, 0.1])
    update = compiled(iep.incremental_pca_update)
    for t in range(20):
        images = np.random.default_rng(t).standard_normal((64, 6)) @ mixing.T
        state = update(state, jnp.asarray(images, jnp.float32))
    overlap = np.abs(np.asarray(state.basis).T @ (mixing / np.linalg.norm(mixing, axis=0))[:, :3])
    assert np.all(np.diag(overlap) > 0.98)


def test_components_without_a_share_are_dropped_on_request():
    random = np.random.default_rng(0)
    y = jnp.asarray(random.standard_normal((9, 2)) @ random.standard_normal((2, 8)), jnp.float32)
    update = compiled(functools.partial(iep.incremental_pca_update, rank_tol=1e-3))
    state = update(iep.incremental_pca_init(8), y)
    np.testing.assert_array_equal(state.basis[:, 2:], np.zeros((8, 2)))
    assert np.all(np.asarray(state.scale)[:, :2] > 0)


def test_students_of_another_size_are_averaged_down():
    random = np.random.default_rng(0)
    x, u, large = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 8, 8, 3), (2, 4, 4), (2, 8, 8)))
    small = x.reshape(2, 4, 2, 4, 2, 3).mean((2, 4))
    wide = small.repeat(2, axis=1).repeat(2, axis=2)
    read = compiled(iep.read_by_teacher)
    for one, other in (((x, u), (small, u)), ((small, large), (wide, large))):
        close(*(read(*map(jnp.asarray, both)) for both in (one, other)))


def test_kl():
    p, q = jnp.log(jnp.asarray([[0.2, 0.8], [0.5, 0.5]])), jnp.log(jnp.asarray([[0.6, 0.4], [0.5, 0.5]]))
    np.testing.assert_allclose(kl_rows(p + 3, q), 0.2 * np.log(0.2 / 0.6) + 0.8 * np.log(2), rtol=1e-5)


def test_embedding_procedure():
    made, student, _ = example()
    shown = compiled(iep.embedding_procedure)(made, student)
    assert [x.shape for x in shown.positions] == [(6, 2)] * 3
    assert [x.shape for x in shown.affinity] == [(6, 6)] * 3
    for p in PAIRS:
        messages = passing(made[p], *student[p : p + 2], training=False).messages
        halves = np.split(np.asarray(messages), 2, axis=-1)
        close(shown.alteration[p], sum(half.mean(axis=-1) for half in halves))
