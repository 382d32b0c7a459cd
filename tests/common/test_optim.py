import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from common import optim
from common.errors import UserError

ADAM = {
    **{"name": "adam", "learning_rate": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-3},
    **{"weight_decay": 0.0, "clip_norm": 0.0, "schedule": "constant"},
}
SGD = {
    **{"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
    **{"clip_norm": 0.0, "schedule": "constant"},
}
GRADIENTS = np.random.RandomState(0).normal(size=(6, 3))
START = np.array([1.0, -2.0, 0.5])


def run(config, gradients=GRADIENTS, start=START):
    optimizer = optim.make_optimizer(ConfigDict(config))
    params = {"w": jnp.asarray(start)}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update({"w": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params["w"])


def numpy_adam(decay=0.0, decoupled=0.0, rates=(0.01,) * 6, b1=0.9, b2=0.999, eps=1e-3):
    w, m, v = START.copy(), np.zeros(3), np.zeros(3)
    for t, (gradient, rate) in enumerate(zip(GRADIENTS, rates, strict=True), 1):
        g = gradient + decay * w
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        w = w - rate * step - rate * decoupled * w
    return w


@pytest.mark.usefixtures("float64")
def test_adam_and_adamw_equal_torch_formula():
    np.testing.assert_allclose(run(ADAM), numpy_adam(), rtol=1e-12)
    np.testing.assert_allclose(run(ADAM | {"weight_decay": 0.3}), numpy_adam(decay=0.3), rtol=1e-12)
    decoupled = run(ADAM | {"name": "adamw", "weight_decay": 0.3})
    np.testing.assert_allclose(decoupled, numpy_adam(decoupled=0.3), rtol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_equals_torch_formula(nesterov):
    w, velocity = START.copy(), np.zeros(3)
    for gradient in GRADIENTS:
        g = gradient + 0.05 * w
        velocity = 0.9 * velocity + g
        w = w - 0.1 * (g + 0.9 * velocity if nesterov else velocity)
    np.testing.assert_allclose(run(SGD | {"nesterov": nesterov}), w, rtol=1e-12)
    plain = run(SGD | {"nesterov": False, "momentum": 0.0, "weight_decay": 0.0})
    np.testing.assert_allclose(plain, START - 0.1 * GRADIENTS.sum(0), rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_rate_follows_the_optimizers_own_count():
    config = ADAM | {"schedule": "step", "decay_steps": (2, 4), "decay_factor": 0.1}
    np.testing.assert_allclose(run(config), numpy_adam(rates=[1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4]), rtol=1e-7)


def test_clipping_is_by_the_norm_of_all_parameters():
    optimizer = optim.make_optimizer(
        ConfigDict(SGD | {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "clip_norm": 1.0})
    )
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    updates, _ = optimizer.update({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, optimizer.init(params), params)
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.06, -0.08], rtol=1e-6)


SCHEDULE = {
    **{"learning_rate": 0.4, "initial_learning_rate": 0.0, "final_learning_rate": 0.1},
    **{"total_steps": 12, "warmup_steps": 4},
}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"schedule": "constant"}, {0: 0.4, 100: 0.4}),
        ({"schedule": "cosine"}, {0: 0.4, 3: 0.25 + 0.15 * np.cos(np.pi / 4), 6: 0.25, 12: 0.1, 50: 0.1}),
        ({"schedule": "warmup_cosine"}, {0: 0.0, 1: 0.1, 4: 0.4, 8: 0.25, 12: 0.1, 50: 0.1}),
        ({"schedule": "warmup_cosine", "initial_learning_rate": 0.2}, {0: 0.2, 1: 0.25, 4: 0.4, 8: 0.25, 12: 0.1}),
        ({"schedule": "warmup_cosine", "warmup_steps": 0}, {0: 0.4, 6: 0.25, 12: 0.1}),
        ({"schedule": "step", "decay_steps": (2, 5), "decay_factor": 0.5}, {0: 0.4, 1: 0.4, 2: 0.2, 5: 0.1, 9: 0.1}),
        ({"schedule": "step", "decay_steps": (), "decay_factor": 0.5}, {0: 0.4, 9: 0.4}),
    ],
)
def test_schedule_values(fields, expected):
    schedule = optim.make_schedule(ConfigDict(SCHEDULE | fields))
    for step, rate in expected.items():
        np.testing.assert_allclose(schedule(jnp.asarray(step)), rate, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("missing", ["name", "learning_rate", "b1", "eps", "weight_decay", "clip_norm", "schedule"])
def test_missing_field_is_named(missing):
    config = {name: value for name, value in ADAM.items() if name != missing}
    with pytest.raises(UserError, match=f"the optimizer's {missing} is missing"):
        optim.make_optimizer(ConfigDict(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "adm"}, r"'adm', but must be one of adam, adamw, adamw_amsgrad, sgd \(did you mean 'adam'\?\)"),
        ({"schedule": "cos"}, "must be one of constant, cosine, warmup_cosine, step"),
        ({"schedule": "cosine"}, "total_steps is missing: adam cosine needs this field"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, but must be a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": "0.1"}, "learning_rate is '0.1'"),
        ({"b2": 1.0}, "b2 is 1.0, but must be a number at least 0 and below 1"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0, but must be a number at least 0"),
        ({"clip_norm": True}, "clip_norm is True"),
        ({"name": "sgd", "momentum": 0.0, "nesterov": True}, "nesterov is True, but needs a momentum"),
        (SCHEDULE | {"schedule": "warmup_cosine", "warmup_steps": 12}, "warmup_steps is 12, but must be below"),
        (
            {"schedule": "step", "decay_steps": (5, 5), "decay_factor": 0.1},
            r"decay_steps is \(5, 5\), but must be incr",
        ),
    ],
)
def test_bad_value_is_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        optim.make_optimizer(ConfigDict(ADAM | changes))


def test_unused_fields_may_be_absent_or_present():
    run({name: value for name, value in ADAM.items() if name != "momentum"} | {"nesterov": False})
    run(SGD)
