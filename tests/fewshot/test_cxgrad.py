"""CxGrad: the official trajectories and the facts that its definition rests on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import cxgrad, maml, models
from tests.fewshot import official, trajectory

SMALL = "cxgrad_small_scale"  # γ of about 0.05, where the context is active
GOLDENS = ("cxgrad_trajectory", SMALL)
# Proportional to the context, itself 1e-5 of anything else: a difference of nearly equal numbers.
TINY = ("context", "outer_grad/G/0.weight", "outer_grad_first_order/G/0.weight")


def inputs(name):
    data = official.golden(name)
    return official.parameters(data), official.tasks(data)


def all_comparisons(name, dtype, **options):
    """As `trajectory.comparisons`, with the scaled weights of step 0 and the first-order gradient."""
    pairs = trajectory.comparisons(name, dtype, **options)
    pairs |= trajectory.first_order_comparisons(name, dtype, **options) if dtype is np.float64 else {}
    return pairs | scaled_weights(name, dtype, **options)


def scaled_weights(name, dtype, **options):
    data = official.golden(name)
    with jax.enable_x64(dtype is np.float64):
        net = jax.tree.map(jnp.asarray, official.cast(official.parameters(data)["net"], dtype))
        theta, _ = maml.split_parameters(net, "all")
        factors = trajectory.of_golden(name, dtype, **options)["factors"][:, 0]
        scaled = [cxgrad.scale_weights(theta, jnp.asarray(gamma)) for gamma in factors]
        stacked = {path: np.stack([np.asarray(task[path]) for task in scaled]) for path in theta}
    keys = official.keys(data, "scaled_step0/")
    return {key: (stacked[path], official.layout(path, data[key])) for path, key in keys.items()}


@pytest.mark.parametrize("name", GOLDENS)
def test_trajectory_equals_official_float64(name):
    pairs = all_comparisons(name, np.float64)
    assert trajectory.unchecked(name, set(pairs)) == []
    trajectory.assert_close(pairs, 1e-9, 1e-9, dict.fromkeys(TINY, 1e-6) if name != SMALL else {})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "values", "gradients"), [(GOLDENS[0], 2e-5, 2e-4), (SMALL, 1e-4, 5e-4)])
def test_trajectory_equals_official_float32(name, values, gradients):
    pairs = all_comparisons(name, np.float32, conv="patches")
    exceptions = {"outer_grad/G/0.weight": 0.3}
    if name != SMALL:
        trajectory.assert_close_after_adam(pairs)
        ours, theirs = pairs.pop("context")
        assert np.abs(ours - theirs).max() <= 5e-6
    else:
        pairs = {key: pair for key, pair in pairs.items() if "after_adam" not in key}
    trajectory.assert_close(pairs, values, gradients, exceptions if name != SMALL else {})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tolerance"), [(GOLDENS[0], 2e-4), (SMALL, 5e-4)])
def test_first_order_gradient_equals_official_float32(name, tolerance):
    pairs = trajectory.first_order_comparisons(name, np.float32, conv="patches")
    exceptions = {"outer_grad_first_order/G/0.weight": 0.3} if name != SMALL else {}
    trajectory.assert_close(pairs, tolerance, tolerance, exceptions)


@pytest.mark.slow
@pytest.mark.parametrize("way", trajectory.WAYS)
def test_every_way_to_run_it_equals_official_float64(way):
    for name in GOLDENS:
        pairs = all_comparisons(name, np.float64, **trajectory.WAYS[way])
        trajectory.assert_close(pairs, 1e-9, 1e-9, dict.fromkeys(TINY, 1e-6) if name != SMALL else {})


@pytest.mark.slow
def test_gradient_equals_finite_differences_and_first_order_does_not(monkeypatch):
    """From a fixed first context: the official gradient leaves out how c_0 depends on the outer parameters."""
    monkeypatch.setattr(cxgrad, "initial_context", lambda *_: jnp.linspace(-0.1, 0.1, 10, dtype=jnp.float64))
    params, tasks = official.cast(inputs(GOLDENS[0]), np.float64)
    programs = [trajectory.build("cxgrad", order, "native", True, False, 0) for order in (False, True)]
    direction = trajectory.random_direction(params, seed=1)
    with jax.enable_x64(True):
        difference = trajectory.central_difference(
            lambda params: float(programs[0](params, tasks, None)["outer_loss"]), params, direction
        )
        second, first = (trajectory.along(program(params, tasks, None)["gradient"], direction) for program in programs)
    assert second == pytest.approx(difference, rel=1e-6)
    assert abs(first - difference) > 0.01 * abs(difference)


def test_first_order_changes_no_value():
    second, first = (trajectory.of_golden(SMALL, first_order=order) for order in (False, True))
    for key in ("outer_loss", "logits", "support_loss", "context", "factors"):
        np.testing.assert_allclose(second[key], first[key], rtol=1e-10)


def test_without_weight_steps_the_context_still_has_second_order():
    params, tasks = inputs(SMALL)
    params["rates"] = {path: 0.0 * rates for path, rates in params["rates"].items()}
    second, first = (
        trajectory.flat(trajectory.run("cxgrad", params, tasks, first_order=order)["gradient"]["generator"])
        for order in (False, True)
    )
    assert official.error(second["output/bias"], first["output/bias"]) > 1e-6


def test_trajectory_does_not_feel_the_norm_of_the_initial_kernels():
    params, tasks = official.cast(inputs(GOLDENS[0]), np.float64)
    net = {
        layer: {"kernel": leaves["kernel"] * 3.0 ** (int(layer[-1]) - 1)} if layer.startswith("conv") else leaves
        for layer, leaves in params["net"].items()
    }
    scaled, plain = trajectory.run("cxgrad", params | {"net": net}, tasks), trajectory.of_golden(GOLDENS[0])
    assert official.error(scaled["support_loss"], plain["support_loss"]) < 1e-12
    for path, leaf in plain["thetas"].items():
        assert official.error(scaled["thetas"][path], leaf) < 1e-9


@pytest.mark.slow
def test_black_images_give_finite_gradients():
    params, tasks = inputs(GOLDENS[0])
    black = tasks._replace(support_images=0 * tasks.support_images, query_images=0 * tasks.query_images)
    gradient = trajectory.run("cxgrad", params, black, dtype=np.float32, conv="patches")["gradient"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_scaling_sets_the_norm_of_kernels_and_nothing_else():
    params, _ = inputs(GOLDENS[0])
    theta, _ = maml.split_parameters(jax.tree.map(jnp.asarray, params["net"]), "all")
    factors = jnp.array([0.1, 0.5, 1.0, 2.0])
    scaled = cxgrad.scale_weights(theta, factors)
    assert cxgrad.scaled_layers(theta) == [f"conv{i}/kernel" for i in range(4)]
    for i in range(4):
        np.testing.assert_allclose(np.linalg.norm(scaled[f"conv{i}/kernel"]), factors[i], rtol=1e-6)
    for path in ("head/kernel", "head/bias"):
        np.testing.assert_array_equal(scaled[path], theta[path])


def test_kernels_feel_the_factor_only_through_their_gradient(float64, monkeypatch):
    """With the norm's epsilon at 0: γ_l ‖∇_Ŵ_l L‖ does not depend on γ_l, and ∇_Ŵ_l L is orthogonal to Ŵ_l."""
    monkeypatch.setattr(models, "EPSILON", 0.0)
    params, tasks = inputs(GOLDENS[0])
    theta, omega = maml.split_parameters(jax.tree.map(jnp.asarray, official.cast(params["net"], np.float64)), "all")
    images = jnp.asarray(tasks.support_images[0], jnp.float64)
    apply = models.Conv4(5, 8, dtype=jnp.dtype("float32")).apply

    @jax.jit
    def scaled_and_gradient(factors):
        def loss(theta):
            output = apply({"params": maml.join_parameters(theta, omega)}, images)
            return maml.cross_entropy(output.logits, jnp.asarray(tasks.support_labels[0]))

        scaled = cxgrad.scale_weights(theta, factors)
        return scaled, jax.grad(loss)(scaled)

    norms = []
    for factors in (jnp.ones(4), jnp.array([0.05, 3.0, 0.7, 10.0])):
        scaled, gradient = scaled_and_gradient(factors)
        kernels = [f"conv{i}/kernel" for i in range(4)]
        norms.append([float(jnp.linalg.norm(gradient[path].ravel()) * factors[i]) for i, path in enumerate(kernels)])
        for path in kernels:
            inner = float(jnp.sum(scaled[path] * gradient[path]))
            lengths = jnp.linalg.norm(scaled[path].ravel()) * jnp.linalg.norm(gradient[path].ravel())
            assert abs(inner) < 1e-10 * float(lengths)
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-9)


def test_fresh_generator_gives_factors_near_two_thirds():
    generator = cxgrad.init_generator(jax.random.key(0), 100, 4)
    factors = cxgrad.scale_factors(generator, jnp.zeros(100))
    assert factors.shape == (4,)
    assert ((factors > 0.5) & (factors < 0.95)).all()
    assert all(float(jnp.abs(leaf).max()) <= 0.1 for leaf in jax.tree.leaves(generator))
