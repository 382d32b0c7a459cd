"""Evaluation is exact: nothing depends on the size of its batches."""

import jax.numpy as jnp
import numpy as np
import pytest

from common import parallel
from common.evaluation import Mean, PerExample
from tests.common.toys import running

COUNT = 45


def outputs(state, data, rows):
    """Two leaves of different ranks."""
    return {"row": rows, "square": (data["x"][rows] * state) ** 2}


@pytest.mark.parametrize("batch_size", [1, 7, 32, COUNT, 500])
def test_same_outputs_for_every_batch_size(batch_size):
    data = {"x": jnp.linspace(-1, 1, COUNT * 3).reshape(COUNT, 3)}
    found = PerExample(outputs, COUNT, batch_size)(jnp.float32(2), data)
    np.testing.assert_array_equal(found["row"], np.arange(COUNT))
    np.testing.assert_array_equal(found["square"], np.asarray((data["x"] * 2) ** 2))


@pytest.mark.parametrize("batch_size", [1, 7, COUNT])
def test_batches_fetched_by_the_host_give_the_same(batch_size):
    """Each batch once, in order, whole; and one ahead of the results."""
    rows, asked = np.linspace(-1, 1, COUNT * 3, dtype=np.float32).reshape(COUNT, 3), []

    def fetch(indices):
        asked.append(indices)
        return {"x": parallel.Rows((len(indices), 3), lambda part: rows[indices[part]]), "row": indices}

    def function(state, data, batch):
        return {"row": batch["row"], "square": (batch["x"] * state) ** 2}

    found = PerExample(function, COUNT, batch_size, fetch)(jnp.float32(2), {}, range(2, COUNT))
    np.testing.assert_array_equal(found["row"], np.arange(2, COUNT))
    np.testing.assert_array_equal(found["square"], (rows[2:] * 2) ** 2)
    assert len(asked) == -(-(COUNT - 2) // batch_size)
    np.testing.assert_array_equal(np.concatenate(asked)[: COUNT - 2], np.arange(2, COUNT))


def test_padding_has_no_weight_in_the_mean():
    data = {"x": jnp.arange(COUNT, dtype=jnp.float32)}
    mean = Mean(lambda state, data, rows: {"x": data["x"][rows], "one": jnp.ones(rows.shape)}, COUNT, 7)
    assert mean(None, data) == {"x": (COUNT - 1) / 2, "one": 1.0}


def test_mean_of_many_is_taken_in_double_precision():
    values = jnp.full(1 << 16, 0.1, jnp.float32)
    mean = Mean(lambda state, data, rows: {"x": data[rows]}, 1 << 16, 1 << 15)
    assert mean(None, values)["x"] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_eight_devices_and_other_batches_give_the_same():
    program = (
        "import jax, jax.numpy as jnp, numpy as np\n"
        "from common.evaluation import PerExample\n"
        "from tests.common.test_evaluation import COUNT, outputs\n"
        "assert jax.device_count() == 8\n"
        "data = {'x': jnp.linspace(-1, 1, COUNT * 3).reshape(COUNT, 3)}\n"
        "for size in (1, 7, 32, COUNT):\n"
        "    found = PerExample(outputs, COUNT, size)(jnp.float32(2), data)\n"
        "    np.testing.assert_array_equal(found['row'], np.arange(COUNT))\n"
        "    np.testing.assert_array_equal(found['square'], np.asarray((data['x'] * 2) ** 2))\n"
        "print('equal')"
    )
    assert running.run_program(program, devices=8) == "equal\n"
