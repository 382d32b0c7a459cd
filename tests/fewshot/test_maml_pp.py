"""MAML++: the official trajectory with every addition switched on, and the multi-step loss's weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshot import maml_pp
from tests.fewshot import official, trajectory

GOLDEN = "mamlpp_trajectory"


def all_comparisons(dtype, **options):
    """As `trajectory.comparisons`, with the running statistics and the weights of the multi-step loss."""
    data, result = official.golden(GOLDEN), trajectory.of_golden(GOLDEN, dtype, **options)
    with jax.enable_x64(dtype is np.float64):
        running = maml_pp.init_running(5, {f"norm{i}": 8 for i in range(4)})
        # The official constructor runs the network twice on zeros, which moves the variance of row 0 from 1 to 0.9².
        start = float(np.float32(0.9) * np.float32(0.9))
        running = {
            name: {"mean": rows["mean"].astype(dtype), "variance": rows["variance"].astype(dtype).at[0].set(start)}
            for name, rows in running.items()
        }
        running = trajectory.flat(maml_pp.update_over_tasks(running, result))
        table = jnp.stack([maml_pp.loss_importance(jnp.asarray(epoch), 5, 15) for epoch in range(15)])
        pairs = {
            # The file tabulates the formula beyond epoch 15 too, where only the last step's loss is used.
            "loss_importance_table": (table, data["loss_importance_table"][:15]),
            "loss_importance": (table[int(data["epoch"])], data["loss_importance"]),
        }
        running = {path: np.asarray(leaf) for path, leaf in running.items()}
    keys = official.keys(data, "running_after/")
    pairs |= {key: (running[path], data[key]) for path, key in keys.items()}
    return trajectory.comparisons(GOLDEN, dtype, **options) | pairs


def test_trajectory_equals_official_float64():
    pairs = all_comparisons(np.float64)
    assert trajectory.unchecked(GOLDEN, set(pairs)) == []
    trajectory.assert_close(pairs, 1e-9, 1e-9)


@pytest.mark.slow
def test_trajectory_equals_official_float32():
    trajectory.assert_close(all_comparisons(np.float32, conv="patches"), 1e-5, 1e-4)


@pytest.mark.slow
def test_another_way_to_run_it_equals_official_float64():
    trajectory.assert_close(all_comparisons(np.float64, **trajectory.WAYS["patches-remat"]), 1e-9, 1e-9)


@pytest.mark.parametrize("num_steps", [2, 5, 10])
def test_importance_sums_to_one_and_moves_to_the_last_step(num_steps):
    table = np.stack([maml_pp.loss_importance(jnp.asarray(epoch), num_steps, 15) for epoch in range(20)])
    np.testing.assert_allclose(table.sum(axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(table[0], 1 / num_steps, rtol=1e-6)
    assert (np.diff(table[:, -1]) >= 0).all()
    assert table[:15, :-1].min() >= 0.03 / num_steps - 1e-7
    np.testing.assert_array_equal(table[15:], np.tile(np.eye(num_steps)[-1], (5, 1)))


@pytest.mark.parametrize(("num_steps", "msl_epochs"), [(1, 15), (5, 0)])
def test_importance_without_choice_is_all_on_the_last_step(num_steps, msl_epochs):
    for epoch in (0, 7, 100):
        importance = maml_pp.loss_importance(jnp.asarray(epoch), num_steps, msl_epochs)
        np.testing.assert_allclose(importance, np.eye(num_steps)[-1], rtol=1e-6)


def test_running_statistics_move_a_tenth_of_the_way_in_their_own_row():
    running = maml_pp.init_running(3, {"norm0": 2})
    moments = {"norm0": maml_pp.Moments(jnp.array([1.0, -1.0]), jnp.array([3.0, 6.0]), 4)}
    rows = maml_pp.update_running(running, moments, 1)["norm0"]
    np.testing.assert_allclose(rows["mean"], [[0, 0], [0.1, -0.1], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(rows["variance"], [[1, 1], [0.9 + 0.4, 0.9 + 0.8], [1, 1]], rtol=1e-6)


def test_one_rate_per_tensor_and_step():
    rates = maml_pp.init_rates({"conv0/kernel": jnp.zeros((3, 3, 1, 2)), "head/bias": jnp.zeros(5)}, 5, 0.1)
    assert {path: leaf.shape for path, leaf in rates.items()} == {"conv0/kernel": (6,), "head/bias": (6,)}
    assert all((leaf == jnp.float32(0.1)).all() for leaf in rates.values())
