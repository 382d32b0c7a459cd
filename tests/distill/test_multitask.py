"""Merging of gradients against the golden files, and the cases they do not hold."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill import train
from distill.method import Method
from distill.multitask import clip_to_norm, merge_gradients, ramp
from tests.distill import golden
from tests.distill.golden import close

TENSORS = range(3)


def trajectory(stored, start, gradient, rate, steps):
    """The weights after each of `steps` updates by momentum SGD."""
    optimizer = optax.sgd(rate, momentum=float(stored["momentum"]), nesterov=True)
    weights, state = start, optimizer.init(start)
    for _ in range(steps):
        updates, state = optimizer.update(gradient(weights), state, weights)
        weights = optax.apply_updates(weights, updates)
        yield weights


@pytest.fixture(scope="module")
def stored():
    return golden.load("multitask_gradients")


def lists(stored):
    return ([stored[f"{name}{i}"] for i in TENSORS] for name in ("w", "grad_class", "grad_dist"))


def test_golden_ramps(stored):
    close(ramp(stored["epochs"]), stored["ramp_toolbox"])
    close(ramp(stored["epochs"], saturate=False), stored["ramp_sskd"])
    np.testing.assert_allclose(ramp(stored["ramp_toolbox_arg"]), stored["ramp_toolbox_val"], rtol=1e-5)


@pytest.mark.parametrize("epoch", range(6))
@pytest.mark.parametrize("method", ["kdsvd", "mhgd"])
def test_golden_toolbox(stored, method, epoch):
    weights, task, distillation = lists(stored)
    initial = 3 if method == "mhgd" else 0
    strength = ramp(stored["epochs"][epoch] - initial)

    def gradient(w):
        decay = [float(stored["weight_decay"]) * value for value in w]
        return merge_gradients(task, decay, [distillation], strength)

    prefix = f"mhgd_epoch{epoch}_init3" if initial else f"kdsvd_epoch{epoch}"
    for step, after in enumerate(trajectory(stored, weights, gradient, float(stored["lr"]), 3), 1):
        for i in TENSORS:
            close(after[i], stored[f"{prefix}_after{step}_w{i}"])


@pytest.mark.parametrize("epoch", range(6))
def test_golden_eccv(stored, epoch):
    weights, task, distillation = lists(stored)
    strength = ramp(stored["epochs"][epoch], saturate=False)

    def gradient(w):
        return merge_gradients(task, [1e-4 * value for value in w], [distillation], strength, "task_and_decay")

    for i, found in enumerate(gradient(weights)):
        close(found, stored[f"sskd_epoch{epoch}_merged_grad{i}"])
    for step, after in enumerate(trajectory(stored, weights, gradient, 0.01, 2), 1):
        for i in TENSORS:
            close(after[i], stored[f"sskd_epoch{epoch}_after{step}_w{i}"])


def test_clip():
    long, short = jnp.asarray([3.0, 4.0]), jnp.asarray([0.3, 0.4])
    np.testing.assert_allclose(clip_to_norm(long, jnp.asarray(1.0)), [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(clip_to_norm(short, jnp.asarray(1.0)), short)
    for gradient in (long, jnp.zeros(2)):
        np.testing.assert_array_equal(clip_to_norm(gradient, jnp.asarray(0.0)), jnp.zeros(2))


def test_every_term_is_clipped_by_itself():
    task, decay = {"w": jnp.asarray([0.0, 2.0])}, {"w": jnp.asarray([0.5, 0.0])}
    terms = [{"w": jnp.asarray([8.0, 0.0])}, {"w": jnp.asarray([0.0, -0.25])}]
    for reference, norm in (("task", 2), ("task_and_decay", float(np.hypot(0.5, 2)))):
        merged = merge_gradients(task, decay, terms, 0.5, reference)["w"]
        np.testing.assert_allclose(merged, [0.5 + 0.5 * norm, 2 - 0.25], rtol=1e-6)
    with pytest.raises(ValueError, match="but must be one of task, task_and_decay"):
        merge_gradients(task, decay, terms, 0.5, "paper")


@pytest.mark.parametrize(("weight", "expected"), [(0.0, [0.0, 6.0]), (1.0, [1.0, 0.5])])
def test_distillation_alone_is_not_clipped_to_a_task_that_is_absent(weight, expected):
    """In the initialisation phase, of weight 0 for cross entropy; beside cross entropy it is, here to half."""
    params = {"student": {"kernel": jnp.zeros(2)}, "adapters": {}}
    fields = dict.fromkeys(train.Recipe._fields) | {"method": Method(lambda *_: ({}, {}), merged=True)}
    fields |= {"weight_decay": 0.0, "decay": "all", "cross_entropy": weight, "distils": True, "merge_rule": "toolbox"}

    def losses(params):
        kernel = params["student"]["kernel"]
        return kernel[0], {"term": 6 * kernel[1]}

    (task, terms), pull = jax.vjp(losses, params)
    found = train.combine(train.Recipe(**fields), params, pull, task, terms, jnp.asarray(0.5))
    np.testing.assert_allclose(found["student"]["kernel"], expected)
