"""Losses and gradients of the baselines against the toolbox; a student that equals its teacher."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill import baselines
from distill.baselines import vid
from distill.method import NOTHING, Outputs, Variables
from tests.distill import official

OPTIONS = {
    "soft_logits": {"temperature": 4.0, "weight": 1.0, "square": False},
    "dml": {},
    "fitnet": {},
    "at": {"beta": 1000.0},
    "ab": {"weight": 3e-3, "before_activation": False},
    "fsp": {"weight": 1e-3},
    "rkd": {"distance": 25.0, "angle": 50.0},
    "vid": {"weight": 1.0},
    "ft": {"weight": 1.0, "before_activation": False, "module_decay": 5e-4},
}
LABELS = jnp.zeros(5, jnp.int32)


def make(name, **changes):
    return importlib.import_module(f"{baselines.__name__}.{name}").make(**(OPTIONS[name] | changes))


def outputs(who, points=range(3), prefix="{}_fm{}"):
    arrays = official.golden("baselines")
    maps = tuple(jnp.asarray(arrays[prefix.format(who, i)]) for i in points)
    side = who.removesuffix("_narrow")
    return Outputs(jnp.asarray(arrays[f"logits_{side}"]), maps, maps, jnp.asarray(arrays[f"emb_{side}"]))


def loss_and_gradients(method, student, teacher, adapters=NOTHING, modules=NOTHING):
    """(loss, gradient to the student's outputs, to the adapters' parameters, to the modules' parameters)."""

    @jax.jit
    def compute(student, adapters, modules, knowledge):
        def loss(student, params, module_params):
            terms, _ = method.loss(
                modules._replace(params=module_params), adapters._replace(params=params), student, knowledge, LABELS
            )
            return sum(terms.values())

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(student, adapters.params, modules.params)

    value, gradients = compute(student, adapters, modules, method.knowledge(teacher))
    return value, *gradients


def compare(name, value, gradients, tolerance=1e-5, gradient_tolerance=1e-4):
    arrays = official.golden("baselines")
    official.close(value, arrays[f"{name}/loss"], tolerance)
    for i, gradient in enumerate(gradients):
        official.close(gradient, arrays[f"{name}/dstudent{i}"], gradient_tolerance, f"{name} dstudent{i}")


@pytest.mark.parametrize(("name", "temperature"), [("soft_logits_T4", 4.0), ("soft_logits_T2", 2.0)])
def test_soft_logits(name, temperature):
    method = make("soft_logits", temperature=temperature)
    value, gradient, *_ = loss_and_gradients(method, outputs("student"), outputs("teacher"))
    compare(name, value, [gradient.logits])
    standard = make("soft_logits", temperature=temperature, square=True, weight=0.3)
    assert standard.cross_entropy_weight == pytest.approx(0.7)
    squared, *_ = loss_and_gradients(standard, outputs("student"), outputs("teacher"))
    np.testing.assert_allclose(squared, 0.3 * temperature**2 * value, rtol=1e-5)


def test_dml():
    value, gradient, *_ = loss_and_gradients(make("dml"), outputs("student"), outputs("teacher"))
    compare("dml", value, [gradient.logits])


@pytest.mark.parametrize(("method", "name"), [("fitnet", "fitnet_same"), ("at", "at"), ("fsp", "fsp")])
def test_maps_without_adapters(method, name):
    value, gradient, *_ = loss_and_gradients(make(method), outputs("student"), outputs("teacher"))
    compare(name, value, gradient.maps)


def test_fitnet_with_another_width():
    arrays, scope = official.golden("baselines"), "Distillation/Guided/Map/fc/weights"
    student, teacher = outputs("student_narrow", range(1)), outputs("teacher", range(1))
    adapters = Variables({"map0": jnp.asarray(arrays[f"fitnet_narrow/param:{scope}"])}, {})
    value, gradient, of_adapters, _ = loss_and_gradients(make("fitnet"), student, teacher, adapters)
    compare("fitnet_narrow", value, gradient.maps)
    official.close(of_adapters["map0"], arrays[f"fitnet_narrow/grad:{scope}"], 1e-4)
    fresh = jax.eval_shape(
        make("fitnet").init_adapters, jax.random.key(0), outputs("student_narrow"), outputs("teacher").maps
    )
    assert {name: leaf.shape for name, leaf in fresh.params.items()} == {"map0": (6, 4), "map2": (12, 10)}


def test_rkd():
    value, gradient, *_ = loss_and_gradients(make("rkd"), outputs("student"), outputs("teacher"))
    compare("rkd", value, [gradient.features], 1e-4)


def test_ab():
    arrays, scope = official.golden("baselines"), "Distillation/criterion_alternative_L2/Map/connector"

    def tree(kind):
        return {
            f"connector{i}": {
                "kernel": jnp.asarray(arrays[f"ab/{kind}:{scope}{i}/weights"][0, 0]),
                **{leaf: jnp.asarray(arrays[f"ab/{kind}:{scope}_bn{i}/{leaf}"]) for leaf in ("gamma", "beta")},
            }
            for i in range(3)
        }

    adapters = Variables(tree("param"), {})
    value, gradient, of_adapters, _ = loss_and_gradients(make("ab"), outputs("student"), outputs("teacher"), adapters)
    compare("ab", value, gradient.maps)
    jax.tree.map(lambda a, b: official.close(a, b, 3e-4), of_adapters, tree("grad"))


def test_vid():
    arrays, scope = official.golden("baselines"), "Distillation/VID/vid0"

    def tree(kind):
        layers = {
            f"layer{j}": {
                "kernel": jnp.asarray(arrays[f"vid/{kind}:{scope}/fc{j}/weights"]),
                **{leaf: jnp.asarray(arrays[f"vid/{kind}:{scope}/bn{j}/{leaf}"]) for leaf in ("gamma", "beta")},
            }
            for j in range(3)
        }
        return layers | {"alpha": jnp.asarray(arrays[f"vid/{kind}:{scope}/alpha"][0, 0, 0])}

    student, teacher = outputs("student", (2,)).maps[0], outputs("teacher", (2,)).maps[0]
    compute = jax.jit(jax.value_and_grad(vid.point_loss, argnums=(0, 1)))
    value, (of_params, of_map) = compute(tree("param"), student, teacher)
    official.close(value, arrays["vid/loss"], 1e-5)
    official.close(of_map, arrays["vid/dstudent2"], 1e-4)
    assert not any(arrays[f"vid/dstudent{i}"].any() for i in (0, 1))  # the file has the last point's term alone
    jax.tree.map(lambda a, b: official.close(a, b, 3e-4), of_params, tree("grad"))
    init = make("vid").init_adapters
    fresh = jax.eval_shape(init, jax.random.key(0), outputs("student"), outputs("teacher").maps)
    assert fresh.params["point2"]["layer0"]["kernel"].shape == (12, 24)


def test_ft():
    arrays = official.golden("baselines")

    def tree(kind, scope, layers):
        return {
            layer: {
                "kernel": jnp.asarray(arrays[f"ft/{kind}:Distillation/Factor_Transfer/{scope}/{layer}/weights"]),
                "bias": jnp.asarray(arrays[f"ft/{kind}:Distillation/Factor_Transfer/{scope}/{layer}/biases"]),
            }
            for layer in layers
        }

    encoder, decoder = [f"conv{i}" for i in range(3)], [f"convt{i}" for i in range(3)]
    paraphraser = tree("param", "Factor_transfer", encoder)
    unfolder = tree("param", "Factor_transfer", decoder)
    # TensorFlow keeps the kernels of transposed convolutions as those of the convolutions they mirror.
    for layer in unfolder.values():
        layer["kernel"] = layer["kernel"][::-1, ::-1].swapaxes(2, 3)
    modules, adapters = Variables(paraphraser | unfolder, {}), Variables(tree("param", "Translator", encoder), {})
    student, teacher = (outputs(who, ("",), "ft_{}_fm{}") for who in ("student", "teacher"))
    method = make("ft")
    value, gradient, of_adapters, of_modules = loss_and_gradients(method, student, teacher, adapters, modules)
    compare("ft", value, gradient.maps)
    jax.tree.map(lambda a, b: official.close(a, b, 1e-4), of_adapters, tree("grad", "Translator", encoder))
    found = {layer: of_modules[layer] for layer in encoder}
    jax.tree.map(lambda a, b: official.close(a, b, 1e-4), found, tree("grad", "Factor_transfer", encoder))
    objective, _, metrics = jax.jit(method.module_loss)(modules, teacher.maps[0], jax.random.key(0))
    official.close(metrics["reconstruction"], arrays["ft/para_loss"], 1e-5)
    squares = sum(np.square(layer["kernel"]).sum() for layer in modules.params.values())
    np.testing.assert_allclose(objective, metrics["reconstruction"] + 5e-4 * squares, rtol=1e-5)


@pytest.mark.parametrize("name", ["soft_logits", "dml", "fitnet", "at", "fsp", "rkd"])
def test_student_that_equals_its_teacher(name):
    """Zero loss and zero gradient, wherever no adapter stands between them."""
    teacher = outputs("teacher")
    value, gradient, *_ = loss_and_gradients(make(name), teacher, teacher)
    assert abs(float(value)) < 1e-6
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) < 1e-5


@pytest.mark.parametrize("name", ["fitnet", "at", "vid", "ab"])
def test_larger_maps_of_the_teacher(name):
    """The student's first map is half as large: the teacher's is averaged."""
    method, student, teacher = make(name), outputs("student"), outputs("teacher")
    init = jax.jit(method.init_adapters)
    half = student.maps[0].reshape(5, 4, 2, 4, 2, 6).mean((2, 4))
    student = student._replace(maps=(half, *student.maps[1:]), raw=(half, *student.raw[1:]))
    adapters = init(jax.random.key(0), student, method.knowledge(teacher))
    value, gradient, *_ = loss_and_gradients(method, student, teacher, adapters)
    assert np.isfinite(value)
    assert value > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
