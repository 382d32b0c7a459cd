"""The contract says what is wrong with an experiment that cannot run."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from common.experiment import Experiment, TrainState, apply_gradients
from tests.common.toys import experiment, running


def build(**fields):
    return experiment.regression(running.toy(), **fields)


def test_exactly_one_source_of_batches():
    with pytest.raises(ValueError, match="either batch or host_batch"):
        build(batch=None)
    with pytest.raises(ValueError, match="either batch or host_batch"):
        build(host_batch=lambda seed, step: None)


def test_step_functions_begin_at_zero():
    with pytest.raises(ValueError, match="begins with the one for step 0"):
        build(train_step={1: lambda *_: None})


def test_step_function_in_force():
    first, second, third = (lambda *_: None for _ in range(3))
    many = build(train_step={0: first, 10: third, 4: second})
    assert [many.step_function(step) for step in (0, 3, 4, 9, 10, 99)] == [
        (0, first), (0, first), (4, second), (4, second), (10, third), (10, third),
    ]  # fmt: skip
    assert build(train_step=first).step_function(7) == (0, first)


def test_apply_gradients_is_one_step_of_the_optimizer():
    optimizer = optax.sgd(0.5)
    params = {"w": jnp.array([1.0, 2.0])}
    state = TrainState(jnp.int32(3), params, optimizer.init(params), {"kept": jnp.float32(1)})
    after = apply_gradients(state, optimizer, {"w": jnp.array([2.0, -2.0])})
    np.testing.assert_allclose(after.params["w"], [0.0, 3.0])
    assert after.step == 3  # counted by the loop
    assert after.model_state == state.model_state


def test_experiment_is_immutable():
    with pytest.raises(AttributeError):
        build().host_step = True
    assert isinstance(build(), Experiment)
