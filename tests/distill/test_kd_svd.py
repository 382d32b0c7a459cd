"""KD-SVD: both forms of the loss against the golden files, down to the feature maps, and what must hold for any maps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill import kd_svd, svd
from distill.align import align_by_cosine, align_weighted
from tests.distill import golden
from tests.distill.golden import GRADIENTS, close, flip

POINTS = range(3)


def arrays(stored, name):
    return [stored[name.format(i)] for i in POINTS]


@pytest.mark.parametrize("n", [1, 3])
def test_golden_eccv(n):
    stored = {key.removeprefix(f"dfv{n}_"): value for key, value in golden.load("sskd_svd").items()}
    student, teacher = arrays(stored, "V_student{}"), arrays(stored, "V_teacher{}")
    teacher_s = [s[:, 0] for s in arrays(stored, "s_teacher{}")]
    for i in POINTS:
        for kind, expected in (("student", student[i]), ("teacher", teacher[i])):
            found = svd.decompose(svd.feature_matrix(stored[f"{kind}_fm{i}"]))
            close(flip(found.v[..., : n + 1], expected), expected, name=f"{kind}{i}")
            if kind == "teacher":
                close(found.s[:, : n + 1], teacher_s[i])
    for pair in range(2):
        for where, i in (("front", pair), ("back", pair + 1)):
            both = align_weighted(student[i], teacher[i], teacher_s[i], n)
            for found, kind in zip(both, ("student", "teacher"), strict=True):
                close(found, stored[f"pair{pair}_{where}_aligned_{kind}"])

    loss, slopes = jax.jit(jax.value_and_grad(lambda student: kd_svd.eccv_loss(student, teacher, teacher_s, n)))(
        student
    )
    close(loss, stored["loss"])
    for i, slope in enumerate(slopes):
        close(slope, stored[f"dloss_dV_student{i}"], GRADIENTS, f"dV{i}")
    for gradient, suffix in (("paper", "intended"), ("published", "published")):
        for i in POINTS:
            full = svd.SVD(*(golden.load("sskd_svd")[f"full_{part}{i}"] for part in "sUV"))
            expected = stored[f"dloss_dstudent_fm{i}_{suffix}"]
            dx = svd.truncated_svd_vjp(full, stored[f"dloss_dV_student{i}"], gradient).reshape(expected.shape)
            close(dx, expected, GRADIENTS, f"{suffix}{i}") if jnp.any(expected) else np.testing.assert_array_equal(
                dx, 0
            )


@pytest.mark.parametrize("backend", ["svd", "eigen"])
@pytest.mark.parametrize(("gradient", "suffix"), [("paper", "intended"), ("published", "published")])
def test_golden_eccv_from_the_maps(gradient, suffix, backend):
    """Our decomposition, its derivative and the loss in one, with the signs of the file: its loss depends on them."""
    stored = golden.load("sskd_svd")
    teacher, values = arrays(stored, "dfv3_V_teacher{}"), [s[:, 0] for s in arrays(stored, "dfv3_s_teacher{}")]

    @jax.jit
    @jax.value_and_grad
    def loss(maps):
        student = [kd_svd.student_vectors(x, 4, gradient, backend) for x in maps]
        signed = [flip(v, w) for v, w in zip(student, arrays(stored, "dfv3_V_student{}"), strict=True)]
        return kd_svd.eccv_loss(signed, teacher, values, 3)

    value, slopes = loss(arrays(stored, "student_fm{}"))
    close(value, stored["dfv3_loss"])
    for i, slope in enumerate(slopes):
        expected = stored[f"dfv3_dloss_dstudent_fm{i}_{suffix}"]
        close(slope, expected, GRADIENTS, f"{i}") if jnp.any(expected) else np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("kind", ["svd", "eid"])
@pytest.mark.parametrize("backend", ["svd", "eigen"])
def test_golden_toolbox(kind, backend):
    stored = golden.load("kd_svd")
    teacher, maps = arrays(stored, f"kd_{kind}_V_teacher{{}}"), arrays(stored, "student_fm{}")

    def vectors(maps):
        return [svd.svd_right_vectors(svd.feature_matrix(x), 4, "toolbox", backend) for x in maps]

    def aligned(maps):
        return [align_by_cosine(v, target) for v, target in zip(vectors(maps), teacher, strict=True)]

    for i in POINTS:
        expected = stored[f"kd_{kind}_V_student{i}"]
        close(flip(vectors(maps)[i], expected), expected)
        close(aligned(maps)[i], stored[f"kd_{kind}_aligned{i}"])
        found = svd.leading_triplet(svd.feature_matrix(stored[f"teacher_fm{i}"]), backend).v
        close(flip(found, teacher[i]), teacher[i])
    loss, slopes = jax.jit(jax.value_and_grad(lambda maps: kd_svd.kd_svd_loss(aligned(maps), teacher)))(maps)
    close(loss, stored[f"kd_{kind}_loss"])
    inner = jax.jit(jax.grad(lambda student: kd_svd.kd_svd_loss(student, teacher)))(aligned(maps))
    for i in POINTS:
        close(inner[i], stored[f"kd_{kind}_dloss_daligned{i}"], GRADIENTS)
        close(slopes[i], stored[f"kd_{kind}_dloss_dstudent{i}"], GRADIENTS, f"map {i}")


@pytest.mark.parametrize("kind", ["svd", "eid"])
@pytest.mark.parametrize("i", range(4))
def test_golden_cotangents(kind, i):
    """One point by itself; map 3 is near-square, where the published `eid` has no gradient."""
    stored = golden.load("kd_svd")
    target, cotangent = stored[f"{kind}{i}_V_teacher"], stored[f"cotangent{i}"]

    def loss(student, published):
        found = kd_svd.teacher_vectors(stored[f"teacher_fm{i}"], 1, canonical=False)[0]
        aligned = kd_svd.aligned_with(found, student, published_near_square=published)
        sign = jax.lax.stop_gradient(jnp.sign(jnp.sum(found * target, axis=1, keepdims=True)))
        return jnp.sum(aligned * sign * cotangent), aligned * sign

    slope, aligned = jax.grad(loss, has_aux=True)(stored[f"student_fm{i}"], kind == "eid")
    close(aligned, stored[f"{kind}{i}_aligned_V_student"])
    expected = stored[f"{kind}{i}_dloss_dstudent"]
    close(slope, expected, GRADIENTS) if jnp.any(expected) else np.testing.assert_array_equal(slope, 0)
    assert bool(jnp.any(expected)) == ((kind, i) != ("eid", 3))


def relu_maps(seed, batch=4, shapes=((6, 6, 8), (4, 4, 8), (2, 2, 20))):
    random = np.random.default_rng(seed)
    return [jnp.asarray(np.maximum(random.standard_normal((batch, *s)), 0), jnp.float32) for s in shapes]


def toolbox(student, teacher, backend="auto"):
    targets = [kd_svd.teacher_vectors(x, 1, backend)[0] for x in teacher]
    vectors = [kd_svd.aligned_with(v, x, backend=backend) for v, x in zip(targets, student, strict=True)]
    return kd_svd.kd_svd_loss(vectors, targets)


def eccv(student, teacher, backend="auto", n=2):
    targets = zip(*[kd_svd.teacher_vectors(x, n + 1, backend) for x in teacher], strict=True)
    vectors = [kd_svd.student_vectors(x, n + 1, "paper", backend) for x in student]
    return kd_svd.eccv_loss(vectors, *targets, n, sign_to="student")


LOSSES = {"toolbox": toolbox, "eccv": eccv}


@functools.lru_cache
def both(name, backend="auto"):
    """(student's maps, teacher's maps) -> (loss, gradients to both), compiled."""
    return jax.jit(jax.value_and_grad(functools.partial(LOSSES[name], backend=backend), argnums=(0, 1)))


@pytest.mark.parametrize("name", LOSSES)
def test_student_equal_to_teacher_has_no_loss_and_no_gradient(name):
    maps = relu_maps(1)
    loss, (slopes, _) = both(name)(maps, maps)
    assert abs(loss) < 1e-9
    other = both(name)(relu_maps(2), maps)[1][0]
    for slope, usual in zip(slopes, other, strict=True):
        assert jnp.abs(slope).max() < 1e-4 * jnp.abs(usual).max()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_do_not_depend_on_the_back_end(name):
    results = [both(name, backend)(relu_maps(3), relu_maps(4)) for backend in ("svd", "eigen")]
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    for one, other in zip(results[0][1][0], results[1][1][0], strict=True):
        close(one, other, GRADIENTS)


@pytest.mark.parametrize("name", LOSSES)
def test_maps_without_full_rank_have_finite_gradients(name):
    student = relu_maps(5)
    student = [x.at[0].set(0).at[1].set(x[1, :1, :1]).at[2, 1:].set(0) for x in student]  # zeros, rank 1, one row
    for teacher in (relu_maps(6), student):
        loss, (slopes, _) = both(name)(student, teacher)
        assert jnp.isfinite(loss)
        for slope in slopes:
            assert jnp.all(jnp.isfinite(slope))
            assert jnp.all(slope[0] == 0)
            assert jnp.abs(slope).max() < 1e3


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_to_the_teacher(name):
    for slope in both(name)(relu_maps(7), relu_maps(8))[1][1]:
        np.testing.assert_array_equal(slope, 0)


def test_non_finite_samples_are_left_out():
    student = [v.at[1, 0, 0].set(jnp.nan) for v in relu_vectors(9)]
    teacher, values = relu_vectors(10), [jnp.ones((4, 2)) for _ in POINTS]
    loss, slopes = jax.value_and_grad(lambda s: kd_svd.eccv_loss(s, teacher, values, 1))(student)
    assert jnp.isfinite(loss)
    rest = [0, 2, 3]
    expected = jax.grad(
        lambda s: kd_svd.eccv_loss(s, [t[jnp.array(rest)] for t in teacher], [v[:3] for v in values], 1)
    )([s[jnp.array(rest)] for s in student])
    for slope, other in zip(slopes, expected, strict=True):
        assert jnp.all(jnp.isfinite(slope))
        np.testing.assert_array_equal(slope[1], 0)
        np.testing.assert_allclose(slope[jnp.array(rest)], other * 4 / 3, rtol=1e-4, atol=1e-9)


def relu_vectors(seed):
    return [svd.thin_svd(svd.feature_matrix(x)).v[..., :2] for x in relu_maps(seed)]


def test_relation():
    """Against its definition, entry by entry, and along its range."""
    front, back = (v[..., :1] for v in relu_vectors(11)[:2])
    relation = np.asarray(kd_svd.rbf_relation(front, back))
    for b, i, j in ((0, 0, 0), (1, 3, 5), (3, 7, 7)):
        expected = np.exp(-((float(front[b, i, 0]) - float(back[b, j, 0])) ** 2) / 8)
        np.testing.assert_allclose(relation[b, i, j, 0], expected, rtol=1e-6)
