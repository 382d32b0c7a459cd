"""MAML: the official trajectory, and what must hold of any correct meta-gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import maml
from tests.fewshot import official, trajectory

GOLDEN = "maml_trajectory"


def inputs():
    data = official.golden(GOLDEN)
    return official.parameters(data), official.tasks(data)


def test_trajectory_equals_official_float64():
    pairs = trajectory.comparisons(GOLDEN, np.float64) | trajectory.first_order_comparisons(GOLDEN, np.float64)
    assert trajectory.unchecked(GOLDEN, set(pairs)) == []
    trajectory.assert_close(pairs, 1e-9, 1e-9)


@pytest.mark.slow
def test_trajectory_equals_official_float32():
    pairs = trajectory.comparisons(GOLDEN, np.float32, conv="patches")
    trajectory.assert_close_after_adam(pairs)
    trajectory.assert_close(pairs, 1e-5, 1e-4)


@pytest.mark.slow
def test_first_order_gradient_equals_official_float32():
    trajectory.assert_close(trajectory.first_order_comparisons(GOLDEN, np.float32, conv="patches"), 1e-5, 1e-4)


@pytest.mark.slow
def test_another_way_to_run_it_equals_official_float64():
    way = "three_forms-unrolled"
    pairs = trajectory.comparisons(GOLDEN, np.float64, **trajectory.WAYS[way])
    pairs |= trajectory.first_order_comparisons(GOLDEN, np.float64, **trajectory.WAYS[way])
    trajectory.assert_close(pairs, 1e-9, 1e-9)


def test_gradient_equals_finite_differences_and_first_order_does_not():
    params, tasks = inputs()
    params = official.cast(params, np.float64)
    direction = trajectory.random_direction(params)
    difference = trajectory.central_difference(
        lambda params: float(trajectory.run("maml", params, tasks)["outer_loss"]), params, direction
    )
    second, first = (
        trajectory.along(trajectory.of_golden(GOLDEN, first_order=order)["gradient"], direction)
        for order in (False, True)
    )
    assert second == pytest.approx(difference, rel=1e-6)
    assert abs(first - difference) > 0.01 * abs(difference)


def test_first_order_changes_no_value():
    second, first = (trajectory.of_golden(GOLDEN, first_order=order) for order in (False, True))
    for key in ("outer_loss", "logits", "support_loss"):
        np.testing.assert_allclose(second[key], first[key], rtol=1e-12)


def test_without_inner_steps_first_order_is_exact():
    params, tasks = inputs()
    params["rates"] = {path: 0.0 * rates for path, rates in params["rates"].items()}
    second, first = (trajectory.run("maml", params, tasks, first_order=order) for order in (False, True))
    for path, leaf in trajectory.flat(second["gradient"]["net"]).items():
        np.testing.assert_allclose(leaf, trajectory.flat(first["gradient"]["net"])[path], rtol=1e-9, atol=1e-12)


def test_renaming_the_classes_permutes_the_logits():
    params, tasks = inputs()
    order = np.array([3, 0, 4, 1, 2], np.int32)  # class c is called order[c] from now on
    head = {name: leaf[..., np.argsort(order)] for name, leaf in params["net"]["head"].items()}
    renamed = tasks._replace(support_labels=order[tasks.support_labels], query_labels=order[tasks.query_labels])
    result = trajectory.run("maml", params | {"net": params["net"] | {"head": head}}, renamed)
    before = trajectory.of_golden(GOLDEN)
    np.testing.assert_allclose(result["logits"][..., order], before["logits"], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(result["outer_loss"], before["outer_loss"], rtol=1e-12)


@pytest.mark.slow
def test_black_images_give_finite_gradients():
    params, tasks = inputs()
    black = tasks._replace(support_images=0 * tasks.support_images, query_images=0 * tasks.query_images)
    gradient = trajectory.run("maml", params, black, dtype=np.float32, conv="patches")["gradient"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("adapted", "expected"),
    [
        ("all", {"conv0/kernel", "head/kernel", "head/bias"}),
        ("head", {"head/kernel", "head/bias"}),
        ("backbone", {"conv0/kernel"}),
        ("all_and_norm", {"conv0/kernel", "head/kernel", "head/bias", "norm0/scale", "norm0/shift"}),
    ],
)
def test_split_parameters(adapted, expected):
    params = {
        "conv0": {"kernel": jnp.ones(1)},
        "norm0": {"scale": jnp.ones(1), "shift": jnp.ones(1)},
        "head": {"kernel": jnp.ones(1), "bias": jnp.ones(1)},
    }
    theta, omega = maml.split_parameters(params, adapted)
    assert set(theta) == expected
    assert not set(theta) & set(omega)
    assert maml.join_parameters(theta, omega) == params


def test_split_parameters_names_what_it_accepts():
    with pytest.raises(ValueError, match=r"'neck'.*all, head, backbone, all_and_norm"):
        maml.split_parameters({}, "neck")
