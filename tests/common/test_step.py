"""The compiled step: sums of metrics, non-finite numbers, and batches made ahead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.step import (
    Stepper,
    accumulate,
    first_bad_leaf,
    first_bad_step,
    host_sums,
    restore_accumulated,
    strongly_typed,
)
from tests.common.toys import experiment, running


def test_sums_add_up_and_come_back_exactly_from_a_record():
    accumulated = restore_accumulated({})
    for step, value in enumerate([0.1, 0.7, 1e-8, 3.3], 1):
        accumulated = accumulate(accumulated, {"loss": (jnp.float32(value), 4), "hits": (step, 2)}, jnp.int32(step))
    sums = host_sums(accumulated)
    assert sums["hits"] == [10.0, 8.0]
    assert sums["loss"] == [float(np.float32(0.1) + np.float32(0.7) + np.float32(1e-8) + np.float32(3.3)), 16.0]
    again = restore_accumulated(sums)
    assert host_sums(again) == sums
    assert first_bad_step(again) is None


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_first_bad_step_is_remembered(bad):
    accumulated = restore_accumulated({})
    for step, value in [(4, 1.0), (5, bad), (6, 1.0), (7, bad)]:
        accumulated = accumulate(accumulated, {"a": (jnp.float32(1), 1), "b": (jnp.float32(value), 1)}, jnp.int32(step))
    assert first_bad_step(accumulated) == 5


def test_first_bad_leaf_by_name():
    tree = {"a": jnp.ones(2), "count": jnp.int32(3), "key": jax.random.key(0), "z": jnp.array([1.0, jnp.inf])}
    assert first_bad_leaf(tree) == "['z']"
    assert first_bad_leaf(tree | {"z": jnp.zeros(0)}) is None
    assert first_bad_leaf({"host": np.array([np.nan])}) == "['host']"


def test_host_batches_are_made_once_and_one_ahead():
    config, made = running.toy("host_batch"), []
    built = experiment.host_batch(config)

    def host_batch(seed, step):
        made.append((seed, step))
        return built.host_batch(seed, step)

    counted = experiment.regression(config, batch=None, host_batch=host_batch)
    data = built.data
    state, accumulated = counted.init(data, jax.random.key(0)), restore_accumulated({})
    stepper = Stepper(counted, data, 5)
    for step in range(3):
        state, accumulated = stepper(state, accumulated, step)
    stepper.close()
    assert made[:3] == [(5, 0), (5, 1), (5, 2)]
    assert len(made) <= 4
    assert int(state.step) == 3
    assert stepper.compile_seconds > 0


def test_mistake_in_a_host_batch_is_raised():
    def host_batch(seed, step):
        raise OSError("no such file")

    broken = experiment.regression(running.toy(), batch=None, host_batch=host_batch)
    stepper = Stepper(broken, broken.data, 0)
    with pytest.raises(OSError, match="no such file"):
        stepper(broken.init(broken.data, jax.random.key(0)), restore_accumulated({}), 0)
    stepper.close()


def test_weak_types_are_made_strong():
    weak = {"rate": jax.lax.full((2,), 0.5), "key": jax.random.key(0)}
    assert weak["rate"].weak_type
    strong = strongly_typed(weak)
    assert not strong["rate"].weak_type
    assert strong["rate"].dtype == jnp.float32
    assert strong["key"] is weak["key"]
