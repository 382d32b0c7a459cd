"""KD-SVD: both forms of the loss against the golden files, down to the maps, and what must hold for any maps."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill import kd_svd, svd
from distill.align import align_by_cosine, align_weighted
from tests.distill import golden
from tests.distill.golden import GRADIENTS, close, compiled, flip

POINTS = range(3)


def arrays(stored, name):
    return [stored[name.format(i)] for i in POINTS]


@pytest.mark.parametrize("n", [1, 3])
def test_golden_eccv(n):
    whole = golden.load("sskd_svd")
    stored = collections.ChainMap(whole.under(f"dfv{n}_"), whole)
    student, teacher = arrays(stored, "V_student{}"), arrays(stored, "V_teacher{}")
    teacher_s = [s[:, 0] for s in arrays(stored, "s_teacher{}")]
    full = [svd.SVD(*(whole[f"full_{part}{i}"] for part in "sUV")) for i in POINTS]
    variants = {"intended": "paper", "published": "published"}

    @compiled
    def everything(student, maps, slopes):
        vectors = [kd_svd.teacher_vectors(x, n + 1) for x in maps]
        aligned = [align_weighted(*point, n) for point in zip(student, teacher, teacher_s, strict=True)]
        loss = jax.value_and_grad(lambda student: kd_svd.eccv_loss(student, teacher, teacher_s, n))(student)
        pulled = {
            suffix: [svd.truncated_svd_vjp(f, dv, gradient) for f, dv in zip(full, slopes, strict=True)]
            for suffix, gradient in variants.items()
        }
        return vectors, aligned, loss, pulled

    slopes = arrays(stored, "dloss_dV_student{}")
    vectors, aligned, (loss, found), pulled = everything(student, arrays(stored, "teacher_fm{}"), slopes)
    for i in POINTS:
        close(flip(vectors[i][0], teacher[i]), teacher[i], name=f"teacher{i}")
        close(vectors[i][1], teacher_s[i], name=f"s{i}")
        close(found[i], slopes[i], GRADIENTS, f"dV{i}")
        for suffix, dx in pulled.items():
            expected = stored[f"dloss_dstudent_fm{i}_{suffix}"]
            golden.close_or_zero(dx[i].reshape(expected.shape), expected, GRADIENTS, f"{suffix}{i}")
    close(loss, stored["loss"])
    for pair in range(2):
        for where, i in (("front", pair), ("back", pair + 1)):
            for which, kind in enumerate(("student", "teacher")):
                close(aligned[i][which], stored[f"pair{pair}_{where}_aligned_{kind}"])


def test_golden_eccv_from_the_maps(backend):
    """Our decomposition, its derivative and the loss in one, with the signs of the file: its loss depends on them."""
    stored = golden.load("sskd_svd")
    teacher, values = arrays(stored, "dfv3_V_teacher{}"), [s[:, 0] for s in arrays(stored, "dfv3_s_teacher{}")]

    def loss(maps, gradient):
        student = [kd_svd.student_vectors(x, 4, gradient, backend) for x in maps]
        signed = [flip(v, w) for v, w in zip(student, arrays(stored, "dfv3_V_student{}"), strict=True)]
        return kd_svd.eccv_loss(signed, teacher, values, 3), student

    both = compiled(lambda maps: [jax.value_and_grad(loss, has_aux=True)(maps, g) for g in ("paper", "published")])
    results = both(arrays(stored, "student_fm{}"))
    for ((value, student), slopes), suffix in zip(results, ("intended", "published"), strict=True):
        close(value, stored["dfv3_loss"])
        for i in POINTS:
            expected = stored[f"dfv3_V_student{i}"]
            close(flip(student[i], expected), expected)
            golden.close_or_zero(slopes[i], stored[f"dfv3_dloss_dstudent_fm{i}_{suffix}"], GRADIENTS, f"{i}")


@pytest.mark.parametrize("kind", ["svd", "eid"])
def test_golden_toolbox(kind):
    """With the back end of the same kind; the signs are those of the file's teacher."""
    stored = golden.load("kd_svd")
    teacher, maps = arrays(stored, f"kd_{kind}_V_teacher{{}}"), arrays(stored, "student_fm{}")
    backend = {"svd": "svd", "eid": "eigen"}[kind]

    @compiled
    def everything(maps):
        def loss(maps):
            vectors = [kd_svd.student_vectors(x, 4, "toolbox", backend) for x in maps]
            aligned = [align_by_cosine(v, target) for v, target in zip(vectors, teacher, strict=True)]
            return kd_svd.kd_svd_loss(aligned, teacher), (vectors, aligned)

        (value, found), slopes = jax.value_and_grad(loss, has_aux=True)(maps)
        inner = jax.grad(lambda aligned: kd_svd.kd_svd_loss(aligned, teacher))(found[1])
        return value, *found, slopes, inner

    loss, vectors, aligned, slopes, inner = everything(maps)
    close(loss, stored[f"kd_{kind}_loss"])
    for i in POINTS:
        expected = stored[f"kd_{kind}_V_student{i}"]
        close(flip(vectors[i], expected), expected)
        close(aligned[i], stored[f"kd_{kind}_aligned{i}"])
        close(inner[i], stored[f"kd_{kind}_dloss_daligned{i}"], GRADIENTS)
        close(slopes[i], stored[f"kd_{kind}_dloss_dstudent{i}"], GRADIENTS, f"map {i}")


@pytest.mark.parametrize("kind", ["svd", "eid"])
def test_golden_cotangents(kind):
    """Each point by itself; map 3 is near-square, where the published `eid` has no gradient."""
    stored = golden.load("kd_svd")

    def loss(student, i):
        target = stored[f"{kind}{i}_V_teacher"]
        found = kd_svd.teacher_vectors(stored[f"teacher_fm{i}"], 1, canonical=False)[0]
        aligned = kd_svd.aligned_with(flip(found, target), student, published_near_square=kind == "eid")
        return jnp.sum(aligned * stored[f"cotangent{i}"]), aligned

    maps = [stored[f"student_fm{i}"] for i in range(4)]
    found = compiled(lambda maps: [jax.grad(loss, has_aux=True)(x, i) for i, x in enumerate(maps)])(maps)
    for i, (slope, aligned) in enumerate(found):
        close(aligned, stored[f"{kind}{i}_aligned_V_student"])
        expected = stored[f"{kind}{i}_dloss_dstudent"]
        golden.close_or_zero(slope, expected, GRADIENTS)
        assert bool(np.any(np.asarray(expected))) == ((kind, i) != ("eid", 3))


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
    return compiled(jax.value_and_grad(functools.partial(LOSSES[name], backend=backend), argnums=(0, 1)))


@pytest.mark.parametrize("name", LOSSES)
def test_student_equal_to_teacher_has_no_loss_and_no_gradient(name):
    maps = relu_maps(1)
    loss, (slopes, _) = both(name)(maps, maps)
    assert abs(loss) < 1e-9
    other = both(name)(relu_maps(2), maps)[1][0]
    for slope, usual in zip(slopes, other, strict=True):
        assert np.abs(slope).max() < 1e-4 * np.abs(usual).max()


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
        assert np.isfinite(loss)
        for slope in map(np.asarray, slopes):
            assert np.all(np.isfinite(slope))
            assert np.all(slope[0] == 0)
            assert np.abs(slope).max() < 1e3


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_to_the_teacher(name):
    for slope in both(name)(relu_maps(7), relu_maps(8))[1][1]:
        np.testing.assert_array_equal(slope, 0)


def unit_vectors(seed, batch=4):
    random = np.random.default_rng(seed)
    return [jnp.asarray(np.linalg.qr(random.standard_normal((batch, c, 2)))[0], jnp.float32) for c in (8, 8, 20)]


def test_non_finite_samples_are_left_out():
    teacher, values = unit_vectors(10), [jnp.ones((4, 2)) for _ in POINTS]
    student = [v.at[1, 0, 0].set(jnp.nan) for v in unit_vectors(9)]
    slopes_of = compiled(jax.value_and_grad(lambda s, t, v: kd_svd.eccv_loss(s, t, v, 1)))
    loss, slopes = slopes_of(student, teacher, values)
    assert np.isfinite(loss)
    rest = np.array([0, 2, 3])
    _, expected = slopes_of(*([x[rest] for x in part] for part in (student, teacher, values)))
    for slope, other in zip(map(np.asarray, slopes), expected, strict=True):
        np.testing.assert_array_equal(slope[1], 0)
        np.testing.assert_allclose(slope[rest], other * np.float32(4 / 3), rtol=1e-4, atol=1e-9)


def test_relation():
    """Against its definition, entry by entry, and along its range."""
    front, back = (v[..., :1] for v in unit_vectors(11)[:2])
    relation = np.asarray(kd_svd.rbf_relation(front, back))
    for b, i, j in ((0, 0, 0), (1, 3, 5), (3, 7, 7)):
        expected = np.exp(-((float(front[b, i, 0]) - float(back[b, j, 0])) ** 2) / 8)
        np.testing.assert_allclose(relation[b, i, j, 0], expected, rtol=1e-6)
