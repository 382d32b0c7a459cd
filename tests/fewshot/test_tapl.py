"""TAPL: the golden trajectory in its three gradient modes, and the facts that its definition rests on."""

import dataclasses
import functools
from collections import ChainMap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import tapl
from fewshot.adaptation import InnerLoop, adapt, task_loss
from fewshot.convolution import CONVOLUTIONS
from fewshot.label_propagation import EPSILON, Propagation
from fewshot.length_scale import SIGMAS, init_sigma, length_scale
from fewshot.models import Conv4, Output
from tests.fewshot import official, trajectory

GOLDEN = "tapl_trajectory"
APPLIES = {name: Conv4(5, 8, dtype=jnp.dtype("float32"), conv=conv).apply for name, conv in CONVOLUTIONS.items()}
APPLY = APPLIES["patches"]
MAML = InnerLoop("maml", 3, 0.05, transduction="tapl", propagation=Propagation(neighbours=6))


def spec_of(mode: str, **fields: Any) -> InnerLoop:
    return dataclasses.replace(MAML, tapl=tapl.Tapl(gradient=mode, **fields))


@pytest.fixture(autouse=True, scope="module")
def little_optimization():
    """These programs take longer to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def inputs():
    data = official.golden(GOLDEN)
    names = [key for key in data if key.startswith("w/") and "norm_layer" not in key]
    params = official.parameters(
        ChainMap({"inner_param_names": np.array([key.removeprefix("w/") for key in names])}, data)
    )
    return {"net": params["net"], "sigma": {"log_sigma": data["log_sigma"]}}, official.tasks(data)


@functools.cache
def program(spec: InnerLoop, conv: str):
    """(parameters, tasks) -> trace, outer loss, its gradient, and θ_T of every task."""
    apply = APPLIES[conv]

    def outer_loss(params, tasks):
        losses, trace = jax.vmap(lambda task: task_loss(spec, apply, params, task))(tasks)
        return losses.mean(), trace

    def run(params, tasks):
        (loss, trace), gradient = jax.value_and_grad(outer_loss, has_aux=True)(params, tasks)

        def thetas(task):
            support = task.support_images, task.support_labels
            return adapt(spec, apply, params, *support, query_images=task.query_images).theta

        return trace | {"outer_loss": loss, "gradient": gradient, "thetas": jax.vmap(thetas)(tasks)}

    return jax.jit(run)


def run(spec: InnerLoop, params=None, tasks=None, dtype: type = np.float64, conv: str = "patches"):
    both = tuple(given or own for given, own in zip((params, tasks), inputs(), strict=True))
    with jax.enable_x64(dtype is np.float64):
        return jax.tree.map(np.asarray, program(spec, conv)(*official.cast(both, dtype)))


def comparisons(mode: str, dtype: type, conv: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{key of the golden file: (ours, theirs)} for all of a mode's results."""
    data, result = official.golden(GOLDEN), run(spec_of(mode), dtype=dtype, conv=conv)
    assert (float(data["query_weight"]), int(data["k"]), int(data["num_steps"])) == (1.0, 6, 3)
    assert (float(data["alpha"]), float(data["eps"])) == (MAML.propagation.alpha, EPSILON)
    pairs = {
        "inner_loss_support": result["support_loss"],
        "inner_loss_query": result["pseudo_loss"],
        "pseudo_label_step0": result["pseudo_labels"][:, 0],
        "pseudo_label_last": result["pseudo_labels"][:, -1],
        "pseudo_accuracy": result["pseudo_accuracy"],
        "target_logits": result["logits"],
        "target_loss": result["query_loss"][:, 0],
        "outer_loss": result["outer_loss"],
        "outer_grad/log_sigma": result["gradient"]["sigma"]["log_sigma"],
    }
    pairs = {f"{mode}/{key}": (ours, data[f"{mode}/{key}"]) for key, ours in pairs.items()}
    groups = {"adapted/": result["thetas"], "outer_grad/w/": trajectory.flat(result["gradient"]["net"])}
    for prefix, ours in groups.items():
        for path, key in official.keys(data, f"{mode}/{prefix}").items():
            pairs[key] = ours[path], official.layout(path, data[key])
    assert {key for key in data if key.startswith(f"{mode}/")} == pairs.keys()
    return pairs


def assert_golden(mode, dtype, values, gradients, conv="patches"):
    pairs = comparisons(mode, dtype, conv)
    accuracy = pairs.pop(f"{mode}/pseudo_accuracy")
    np.testing.assert_allclose(*accuracy, rtol=1e-6)
    if mode != "soft_outer":
        assert pairs.pop(f"{mode}/outer_grad/log_sigma") == (0, 0)
    if mode == "hard":
        for step in ("step0", "last"):
            np.testing.assert_array_equal(*pairs.pop(f"hard/pseudo_label_{step}"))
    trajectory.assert_close(pairs, values, gradients)


# Each mode, in each precision, is a program of its own to compile; the ordinary tests make do with one.
MODES = ["soft_outer", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("soft_constant", "hard"))]


@pytest.mark.parametrize("mode", MODES)
def test_trajectory_equals_golden_float64(mode):
    assert_golden(mode, np.float64, 1e-9, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("mode", tapl.GRADIENTS)
def test_trajectory_equals_golden_float32(mode):
    # In "hard" some leaky ReLU or maximum is so near its kink that weights moved by 1e-7 change the outer gradient by
    # 2e-2, in float64 too, and no value by more than 1e-6. The rounding of this form stays on the file's side of it.
    assert_golden(mode, np.float32, 1e-4, 1e-3, "three_forms" if mode == "hard" else "patches")


# --- the outer gradient ---------------------------------------------------------------------------------------------


@functools.cache
def loss_with_frozen_labels():
    """(parameters, tasks, pseudo labels [B, T, NQ, N]) -> outer loss where these labels are taken as they are."""
    spec = dataclasses.replace(spec_of("soft_constant"), scan=False)

    def one(params, task, labels):
        given = iter(labels)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tapl, "make_pseudo_labels", lambda *_: tapl.Pseudo(*[next(given)] * 2))
            return task_loss(spec, APPLY, params, task)[0]

    return jax.jit(lambda *batch: jnp.mean(jax.vmap(one, in_axes=(None, 0, 0))(*batch)))


@pytest.mark.parametrize("mode", MODES)
def test_gradient_equals_finite_differences(mode):
    """Where the pseudo labels are constants of the outer gradient, they stay what they are."""
    params, tasks = official.cast(inputs(), np.float64)
    result = run(spec_of(mode))
    direction = trajectory.random_direction(params, seed=4)

    def loss(params):
        if mode == "soft_outer":
            return float(run(spec_of(mode), params)["outer_loss"])
        with jax.enable_x64(True):
            return float(loss_with_frozen_labels()(params, tasks, result["pseudo_labels"]))

    assert loss(params) == pytest.approx(float(result["outer_loss"]), rel=1e-12)
    difference = trajectory.central_difference(loss, params, direction, step=3e-8)  # few of the kinks within
    assert trajectory.along(result["gradient"], direction) == pytest.approx(difference, rel=1e-6)


@pytest.mark.slow
def test_gradient_through_the_labels_makes_a_difference():
    soft, constant = (run(spec_of(mode)) for mode in ("soft_outer", "soft_constant"))
    np.testing.assert_allclose(soft["outer_loss"], constant["outer_loss"], rtol=1e-12)
    kernels = [result["gradient"]["net"]["conv3"]["kernel"] for result in (soft, constant)]
    assert official.error(*kernels) > 0.01


# --- what queries are used for --------------------------------------------------------------------------------------


def test_true_query_labels_do_not_enter_the_adaptation():
    _, tasks = inputs()
    before = run(spec_of("soft_outer"))
    last = before["pseudo_labels"][:, -1].argmax(axis=-1)
    other = tasks._replace(query_labels=last.astype(tasks.query_labels.dtype))  # another type would compile anew
    after = run(spec_of("soft_outer"), tasks=other)
    for name in ("thetas", "logits", "pseudo_labels", "support_loss", "pseudo_loss", "confidence"):
        jax.tree.map(np.testing.assert_array_equal, before[name], after[name])
    assert before["outer_loss"] != after["outer_loss"]
    assert (before["pseudo_accuracy"][:, -1] < 1).all()
    assert (after["pseudo_accuracy"][:, -1] == 1).all()  # which is only reported


@pytest.mark.slow
def test_order_of_the_queries_does_not_matter():
    _, tasks = inputs()
    order = np.random.default_rng(0).permutation(15)
    other = tasks._replace(query_images=tasks.query_images[:, order], query_labels=tasks.query_labels[:, order])
    before, after = run(spec_of("soft_outer")), run(spec_of("soft_outer"), tasks=other)
    np.testing.assert_allclose(after["logits"], before["logits"][:, order], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(after["pseudo_labels"], before["pseudo_labels"][:, :, order], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(after["outer_loss"], before["outer_loss"], rtol=1e-10)


# --- the inner loss and its options, on a linear "network" ----------------------------------------------------------

LABELS = jnp.arange(3)


def linear(theta, step):
    """Features and logits of 3 support and 6 query images."""
    images = np.random.default_rng(5).standard_normal((9, 4))
    return Output(images @ theta["features"] @ theta["head"], images @ theta["features"], {})


def weights(seed=0):
    random = np.random.default_rng(seed)
    return {"features": random.standard_normal((4, 6)), "head": random.standard_normal((6, 3))}


def evaluate(theta=None, first=None, log_sigma=0.3, **fields):
    """Trace, ∇σ and ∇θ of an inner loss."""
    return inner(tapl.Tapl(**fields))(theta or weights(), first or weights(), {"log_sigma": jnp.asarray(log_sigma)})


@functools.cache
def inner(spec: tapl.Tapl):
    def gradient(theta, first, sigma):
        return tapl.objective(spec, Propagation(4), linear, LABELS, first, sigma, False).gradient(theta, sigma, 0)

    return jax.jit(gradient)


@pytest.mark.parametrize("fields", [{}, {"query_weight": 0.5, "mean": "single"}, {"gradient": "hard"}])
def test_labels_are_constants_of_the_inner_gradient(fields, float64):
    trace, sigma_gradient, gradient = evaluate(**fields)
    spec = tapl.Tapl(**fields)

    def loss(theta):
        log_p = jax.nn.log_softmax(linear(theta, 0).logits)
        support = -jnp.diag(log_p[:3])
        query = -jnp.sum(trace["pseudo_labels"] * log_p[3:], axis=1)
        if spec.mean == "single":
            return (support.sum() + spec.query_weight * query.sum()) / 9
        return support.mean() + spec.query_weight * query.mean()

    assert sigma_gradient == {}
    expected = jax.jit(jax.grad(loss))(weights())
    for name, leaf in expected.items():
        np.testing.assert_allclose(gradient[name], leaf, rtol=1e-9, atol=1e-12)


def test_sigma_is_adapted_through_the_labels(float64):
    def loss(log_sigma):
        trace, _, _ = evaluate(log_sigma=log_sigma)
        return float(trace["support_loss"] + trace["pseudo_loss"])

    _, gradient, _ = evaluate(adapt_sigma=True)
    difference = (loss(0.3 + 1e-5) - loss(0.3 - 1e-5)) / 2e-5
    assert float(gradient["log_sigma"]) == pytest.approx(difference, rel=1e-6)


def test_first_step_keeps_the_labels_of_the_initial_features():
    anew, kept, moved = (
        evaluate(weights(1), weights(0), pseudo_labels=when)[0]["pseudo_labels"]
        for when in ("every_step", "first_step", "every_step")
    )
    np.testing.assert_array_equal(kept, evaluate(weights(0))[0]["pseudo_labels"])
    np.testing.assert_array_equal(anew, moved)
    assert (jnp.abs(anew - kept) > 1e-3).any()


def test_unsure_queries_have_no_loss():
    confidence = np.asarray(evaluate()[0]["probabilities"]).max(axis=1)
    threshold = float(np.median(confidence))
    sure = confidence >= threshold
    assert sure.sum() == 3
    trace, _, _ = evaluate(confidence_threshold=threshold)
    np.testing.assert_array_equal(trace["pseudo_labels"][~sure], 0.0)
    np.testing.assert_array_equal(trace["pseudo_labels"][sure], trace["probabilities"][sure])


# --- length scale ---------------------------------------------------------------------------------------------------


def test_length_scales():
    features = jax.random.normal(jax.random.key(0), (12, 5 * 5 * 8))
    for mode in SIGMAS:
        spec = Propagation(sigma=mode, initial_sigma=0.7)
        init = jax.jit(functools.partial(init_sigma, spec, num_features=200, channels=8))
        params = init(jax.random.key(1))
        if mode == "per_image":

            def loss(params, spec=spec):
                sigma = length_scale(spec, params, features)
                return jnp.sum(sigma**2), sigma

            gradient, sigma = jax.jit(jax.grad(loss, has_aux=True))(params)
            assert sigma.shape == (12,)
            assert len(np.unique(sigma)) == 12
            assert params["hidden"].shape == (4, 8)  # 5 -> 3 -> 2
            assert all((leaf != 0).any() for leaf in jax.tree.leaves(gradient))
        else:
            assert float(length_scale(spec, params, features)) == pytest.approx(0.7)
            assert params.keys() == ({"log_sigma"} if mode == "scalar" else set())
