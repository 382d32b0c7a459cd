"""The three methods behind the interface: modules, adapters and losses together, and what a user can get wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.errors import UserError
from distill.method import NOTHING, Outputs, frozen
from distill.methods import iepkt, mhgd, sskd_svd
from tests.distill.golden import compiled

SVD = {"svd_gradient": "toolbox", "svd_backend": "auto", "teacher_svd": "auto", "canonical_sign": True}
SVD["published_near_square"] = False
OPTIONS = {
    "sskd_svd": (sskd_svd.make, {"form": "toolbox", "vectors": 1, **SVD}),
    "mhgd": (mhgd.make, {"heads": 8, "squash": True, **SVD}),
    "iepkt": (
        iepkt.make,
        {
            "terms": ("interim", "alteration", "black_box"),
            "iterations": 2,
            "squash": True,
            "rank_tol": 0.0,
            "svd_backend": "auto",
            "shown_images": 16,
        },
    ),
}
SHAPES = ((8, 8, 6), (4, 4, 8), (2, 2, 12))
OTHER_SHAPES = ((16, 16, 5), (4, 4, 8), (1, 1, 9))


def make(name, **changes):
    function, options = OPTIONS[name]
    return function(**options | changes)


def outputs(seed, shapes=SHAPES, batch=8):
    random = np.random.default_rng(seed)
    raw = tuple(jnp.asarray(random.standard_normal((batch, *s)) + 0.3, jnp.float32) for s in shapes)
    return Outputs(jnp.zeros((batch, 10)), tuple(jax.nn.relu(x) for x in raw), raw, jnp.zeros((batch, 12)))


LABELS = jnp.zeros(8, jnp.int32)


@functools.lru_cache
def trained(name):
    """(method, modules after a few steps, knowledge, (objective, terms) of each step)."""
    method = make(name)
    knowledge = compiled(method.knowledge)(outputs(1))
    modules, values = compiled(method.init_modules)(jax.random.key(0), knowledge), []

    @compiled
    def step(modules, key):
        def objective(params):
            value, state, terms = method.module_loss(modules._replace(params=params), knowledge, key)
            return value, (state, terms)

        (value, (state, terms)), slope = jax.value_and_grad(objective, has_aux=True)(modules.params)
        params = jax.tree.map(lambda p, g: p - 0.02 * g, modules.params, slope)
        return type(modules)(params, state), (value, terms)

    for i in range(12 if method.module_loss is not None else 0):
        modules, seen = step(modules, jax.random.key(i))
        values.append(seen)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((modules, values)))
    return method, modules, knowledge, values


@functools.lru_cache
def slopes(name, shapes):
    """(adapters, maps -> (terms, gradients of their sum to the maps and to the adapters))."""
    method, modules, knowledge, _ = trained(name)
    student = outputs(2, shapes)
    adapters = compiled(method.init_adapters)(jax.random.key(1), student, knowledge)

    @compiled
    def both(maps):
        def total(maps, params):
            kept = frozen((modules, knowledge))
            mine = adapters._replace(params=params)
            terms, state = method.loss(kept[0], mine, student._replace(maps=maps), kept[1], LABELS)
            assert jax.tree.structure(state) == jax.tree.structure(adapters.state)
            return sum(terms.values()), terms

        (_, terms), found = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(maps, adapters.params)
        return terms, found

    return adapters, both


@pytest.mark.parametrize("name", ["mhgd", "iepkt"])
def test_modules_learn_their_objective_and_keep_the_shape_of_their_state(name):
    method, modules, knowledge, values = trained(name)
    assert values[-1][0] < values[1][0]
    fresh = jax.eval_shape(method.init_modules, jax.random.key(0), knowledge)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), modules) == jax.tree.map(lambda x: (x.shape, x.dtype), fresh)
    names = {"mhgd": {"estimation0", "estimation1"}, "iepkt": {"graph0", "estimation0", "graph1", "estimation1"}}
    assert values[0][1].keys() == names[name]


@pytest.mark.parametrize(
    ("name", "shapes", "adapted"),
    [(name, SHAPES, 0) for name in OPTIONS] + [(name, OTHER_SHAPES, 2) for name in ("sskd_svd", "iepkt")],
)
def test_gradients_reach_student_and_adapters(name, shapes, adapted):
    adapters, both = slopes(name, shapes)
    assert len(adapters.params) == adapted
    terms, (to_maps, to_adapters) = both(outputs(2, shapes).maps)
    assert all(value > 0 for value in terms.values())
    assert all(np.all(np.isfinite(slope)) for slope in jax.tree.leaves((to_maps, to_adapters)))
    assert all(np.any(slope) for slope in to_maps)
    assert all(np.any(slope) for slope in jax.tree.leaves(to_adapters))


@pytest.mark.parametrize("name", OPTIONS)
def test_the_teacher_itself_has_no_loss(name):
    _, both = slopes(name, SHAPES)
    (terms, (slope, _)), (usual, (others, _)) = (both(outputs(seed).maps) for seed in (1, 2))
    assert all(terms[key] < 1e-4 * usual[key] for key in usual), (terms, usual)
    for one, other in zip(slope, others, strict=True):
        assert np.abs(one).max() < 1e-3 * np.abs(other).max()


def test_knowledge_is_that_of_each_image_alone():
    """So that it can be cached; IEP's holds what the others' do."""
    knowledge = compiled(make("iepkt").knowledge)
    together, alone = knowledge(outputs(1)), knowledge(jax.tree.map(lambda x: x[2:4], outputs(1)))
    for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one[2:4], other, rtol=0, atol=1e-5 * float(np.abs(one).max()))


def test_eccv_form():
    method = make("sskd_svd", form="eccv", vectors=2, svd_gradient="paper")
    knowledge, student = compiled(method.knowledge)(outputs(1)), outputs(2)
    terms, _ = compiled(method.loss)(
        NOTHING, method.init_adapters(jax.random.key(0), student, knowledge), student, knowledge, LABELS
    )
    assert terms["singular_vectors"] > 0
    method = make("sskd_svd", form="eccv", vectors=5)
    knowledge = jax.eval_shape(method.knowledge, outputs(1))
    with pytest.raises(UserError, match=r"options.vectors is 5, but the maps of sensing point 2 have only 4"):
        method.init_adapters(jax.random.key(0), student, knowledge)


def test_iep_terms_are_those_asked_for():
    for terms in (("interim",), ("alteration", "interim")):
        method = make("iepkt", terms=terms)
        knowledge = jax.eval_shape(method.knowledge, outputs(1))
        modules = jax.eval_shape(method.init_modules, jax.random.key(0), knowledge)
        assert not any("black_box" in pair for pair in modules.params.values())
        student = outputs(2)
        adapters = method.init_adapters(jax.random.key(0), student, knowledge)
        found, _ = jax.eval_shape(method.loss, modules, adapters, student, knowledge, LABELS)
        assert set(found) == set(terms)


def test_figures(tmp_path):
    method, modules, _, _ = trained("iepkt")
    knowledge = compiled(method.knowledge)(outputs(3, batch=40))
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (40, 8, 8, 1), np.uint8), np.arange(40) % 4
    shares = method.figures(modules, knowledge, images, labels, tmp_path)
    assert set(shares) == {f"neighbours/{kind}{i}" for kind in ("class", "colour") for i in range(3)}
    assert all(0 <= value <= 1 for value in shares.values())
    for name in ("embedding_procedure", "neighbours"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert make("iepkt", shown_images=0).figures is None


WRONG = [
    ("sskd_svd", {"form": "ecv"}, r"config.options.form is 'ecv', but must be one of .*did you mean 'eccv'"),
    ("sskd_svd", {"svd_gradient": "papr"}, "config.options.svd_gradient is 'papr'"),
    ("sskd_svd", {"vectors": 0, "form": "eccv"}, "config.options.vectors is 0, but must be at least 1"),
    ("sskd_svd", {"vectors": 2}, "must be 1 where options.form is 'toolbox'"),
    ("mhgd", {"heads": 1}, "config.options.heads is 1, but must be at least 2"),
    ("mhgd", {"teacher_svd": "powr"}, "config.options.teacher_svd is 'powr'"),
    ("iepkt", {"terms": ()}, "config.options.terms is"),
    ("iepkt", {"terms": ("interim", "black box")}, "must be one or several of interim, alteration, black_box"),
    ("iepkt", {"iterations": 0}, "config.options.iterations is 0"),
    ("iepkt", {"rank_tol": 1.0}, "config.options.rank_tol is 1.0"),
    ("iepkt", {"shown_images": 3}, "config.options.shown_images is 3, but must be 0, or at least 16"),
]


@pytest.mark.parametrize(("name", "changes", "message"), WRONG)
def test_wrong_options(name, changes, message):
    with pytest.raises(UserError, match=message):
        make(name, **changes)


@pytest.mark.parametrize("name", OPTIONS)
def test_points_that_cannot_be_paired(name):
    method = make(name)
    knowledge = jax.eval_shape(method.knowledge, outputs(1))
    with pytest.raises(UserError, match="the student has 2 sensing points and the teacher 3"):
        method.init_adapters(jax.random.key(0), outputs(2, SHAPES[:2]), knowledge)
    single = jax.eval_shape(method.knowledge, outputs(1, SHAPES[:1]))
    with pytest.raises(UserError, match="at least 2"):
        method.init_adapters(jax.random.key(0), outputs(2, SHAPES[:1]), single)
    if method.module_loss is not None:
        with pytest.raises(UserError, match="at least 2"):
            method.init_modules(jax.random.key(0), single)


def test_iep_needs_sizes_that_divide_and_enough_channels():
    method = make("iepkt")
    knowledge = jax.eval_shape(method.knowledge, outputs(1))
    with pytest.raises(UserError, match="neither side is a multiple of the other"):
        method.init_adapters(jax.random.key(0), outputs(2, ((8, 8, 6), (3, 3, 8), (2, 2, 12))), knowledge)
    with pytest.raises(UserError, match="at least 4 channels"):
        method.init_modules(jax.random.key(0), jax.eval_shape(method.knowledge, outputs(1, ((4, 4, 3), (2, 2, 8)))))
