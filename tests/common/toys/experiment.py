"""Toys in which a method's awkward habits are all that is left: see `build`."""

import functools
import time
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from common import evaluation, parallel, rng
from common.config import check_choice, check_positive
from common.experiment import Experiment, Phase, TrainState, apply_gradients

EXAMPLES, FEATURES = 80, 6


def phases(config: ConfigDict) -> list[Phase]:
    """One phase without a name; teacher and student for the toy "phases"."""
    check_choice(config, "toy", BUILDERS)
    check_positive(config, "batch_size")
    if config.toy == "phases":
        return [Phase("teacher", build, {"num_steps": config.num_steps // 2}), Phase("student", build, {})]
    return [Phase("", build, {})]


def build(config: ConfigDict, finished: Mapping[str, TrainState]) -> Experiment:
    """The experiment of `config.toy`; a student is told by a finished teacher."""
    if "teacher" in finished:
        return student(config, finished["teacher"])
    return BUILDERS[config.toy](config)


def make_data() -> dict[str, np.ndarray]:
    """A smooth function of a few features, with noise."""
    random = np.random.RandomState(0)
    x = random.randn(EXAMPLES, FEATURES).astype(np.float32)
    y = np.tanh(x @ random.randn(FEATURES, 2)) + 0.1 * random.randn(EXAMPLES, 2)
    return {"x": x, "y": y.astype(np.float32)}


def draw(config: ConfigDict, data, step, key):
    """A batch gathered inside the compiled step."""
    rows = jax.random.randint(key, (config.batch_size,), 0, EXAMPLES)
    return {"x": data["x"][rows], "y": data["y"][rows]}


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    return optax.sgd(config.learning_rate, momentum=config.momentum or None)


def init_mlp(width: int, key) -> dict[str, Any]:
    first, second = jax.random.split(key)
    return {
        "hidden": {"kernel": jax.random.normal(first, (FEATURES, width)) / 2, "bias": jnp.zeros(width)},
        "head": {"kernel": jax.random.normal(second, (width, 2)) / 2, "bias": jnp.zeros(2)},
    }


def apply_mlp(params, x):
    for name in ("hidden", "head"):
        x = x @ params[name]["kernel"] + params[name]["bias"][None]
        x = jnp.tanh(x) if name == "hidden" else x
    return x


def square_error(params, batch):
    """Per example."""
    return jnp.sum((apply_mlp(params, batch["x"]) - batch["y"]) ** 2, axis=-1)


def make_evaluate(config: ConfigDict, error=lambda state, batch: square_error(state.params, batch)):
    """Mean error over all examples; slow or NaN where the config asks for it."""

    def values(state, data, rows):
        return {"loss": error(state, {"x": data["x"][rows], "y": data["y"][rows]})}

    mean = evaluation.Mean(values, EXAMPLES, config.eval_batch_size)

    def evaluate(state, data):
        if config.slow == "evaluate":
            sleep(config.slow_seconds)
        numbers = mean(state, data)
        if config.plant == "evaluation" and state.step >= config.plant_step:
            numbers["loss"] = float("nan")
        return numbers

    return evaluate


def sleep(seconds: float) -> None:
    """In short naps, as Python code that computes would be."""
    for _ in range(round(seconds * 100)):
        time.sleep(0.01)


def regression_step(config: ConfigDict, state, data, batch, key):
    """A step with noise from the step's own key; with whatever trouble the config plants."""

    def loss_of(params):
        noisy = batch | {"x": batch["x"] + 0.01 * jax.random.normal(key, batch["x"].shape)}
        loss = square_error(params, noisy).mean()
        hit = state.step == config.plant_step
        if config.plant == "loss":
            loss = loss * jnp.where(hit, jnp.nan, 1.0)
        if config.plant == "gradient":  # the root of 0 is finite and its slope is not
            loss = loss + 0 * jnp.sqrt(0 * params["head"]["bias"].sum() + jnp.where(hit, 0.0, 1.0))
        return loss

    if config.slow == "compile":
        time.sleep(config.slow_seconds)
    loss, gradients = jax.value_and_grad(loss_of)(state.params)
    if config.slow == "step":
        nap = jax.pure_callback(slow_callback, jax.ShapeDtypeStruct((), jnp.float32), config.slow_seconds + 0 * loss)
        loss = loss + nap
    examples = batch["x"].shape[0]
    return apply_gradients(state, optimizer(config), gradients), {"loss": (loss * examples, examples)}


def slow_callback(seconds) -> np.float32:
    time.sleep(float(seconds))
    return np.float32(0)


def make_init(config: ConfigDict):
    def init(data, key):
        params = init_mlp(config.width, key)
        return TrainState(jnp.int32(0), params, optimizer(config).init(params), {})

    return init


def regression(config: ConfigDict, **changes) -> Experiment:
    """The plain case; `changes` are fields of the Experiment."""
    fields = {
        "data": make_data(),
        "init": make_init(config),
        "batch": functools.partial(draw, config),
        "train_step": functools.partial(regression_step, config),
        "evaluate": make_evaluate(config),
    }
    return Experiment(**(fields | changes))


def student(config: ConfigDict, teacher: TrainState) -> Experiment:
    """Learns the outputs of a teacher that is read back from disk and is a part of the data."""

    def step(state, data, batch, key):
        return regression_step(config, state, data, batch | {"y": apply_mlp(data["teacher"], batch["x"])}, key)

    return regression(config, data=make_data() | {"teacher": teacher.params}, train_step=step)


def warm_up(config: ConfigDict) -> Experiment:
    """Another train step from step 7 on, which reports one metric more."""

    def first(state, data, batch, key):
        state, metrics = regression_step(config, state, data, batch, key)
        return state, metrics | {"warming": (1.0, 1)}

    def second(state, data, batch, key):
        state, metrics = regression_step(config, state, data, batch, key)
        return state, metrics | {"warm": (jnp.abs(state.params["head"]["bias"]).sum(), 1)}

    return regression(config, train_step={0: first, 7: second})


def done(config: ConfigDict) -> Experiment:
    """Ends as soon as the moving loss is small enough."""

    def init(data, key):
        return make_init(config)(data, key).replace(model_state={"loss": jnp.float32(10)})

    def step(state, data, batch, key):
        state, metrics = regression_step(config, state, data, batch, key)
        loss = 0.5 * state.model_state["loss"] + 0.5 * metrics["loss"][0] / metrics["loss"][1]
        return state.replace(model_state={"loss": loss}), metrics

    return regression(config, init=init, train_step=step, done=lambda s: float(s.model_state["loss"]) < config.target)


def host_batch(config: ConfigDict) -> Experiment:
    """Batches made on the host, for data that do not fit on the device."""
    data = make_data()

    def make(seed: int, step: int):
        rows = np.random.RandomState([seed, step]).randint(EXAMPLES, size=config.batch_size)
        return {"x": data["x"][rows], "y": data["y"][rows]}

    return regression(config, batch=None, host_batch=make)


def two_optimizers(config: ConfigDict) -> Experiment:
    """Head and hidden layer have an optimiser each; the head is updated first, the other sees the new head."""
    optimizers = {"head": optax.adam(config.learning_rate), "hidden": optimizer(config)}

    def init(data, key):
        params = init_mlp(config.width, key)
        slots = {name: optimizers[name].init(params[name]) for name in optimizers}
        return TrainState(jnp.int32(0), params, slots, {"average": params, "key": jax.random.fold_in(key, 1)})

    def step(state, data, batch, key):
        params, slots, metrics = state.params, {}, {}
        for name in ("head", "hidden"):
            loss, gradient = jax.value_and_grad(
                lambda part, name=name, params=params: square_error(params | {name: part}, batch).mean()
            )(params[name])
            updates, slots[name] = optimizers[name].update(gradient, state.opt_state[name], params[name])
            params = params | {name: optax.apply_updates(params[name], updates)}
            metrics[name] = (loss, 1)
        average = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, state.model_state["average"], params)
        model_state = {"average": average, "key": jax.random.fold_in(state.model_state["key"], 0)}
        return state.replace(params=params, opt_state=slots, model_state=model_state), metrics

    return regression(config, init=init, train_step=step)


def refresh(config: ConfigDict) -> Experiment:
    """Pseudo-labels made on the host from the hidden layer, then a new head with new optimiser slots."""

    def init(data, key):
        return make_init(config)(data, key).replace(model_state={"labels": jnp.zeros((EXAMPLES, 2))})

    def refreshed(state, data, step, key):
        host = jax.device_get(state.params["hidden"])
        hidden = np.tanh(np.asarray(data["x"]) @ host["kernel"] + host["bias"][None])
        axes = np.linalg.svd(hidden - hidden.mean(0, keepdims=True), full_matrices=False)[2][:2]
        labels = np.asarray(data["y"]) + 0.1 * np.sign(hidden @ axes.T)
        params = state.params | {"head": init_mlp(config.width, key)["head"]}
        slots = optimizer(config).init(params)
        kept = jax.tree_util.tree_map_with_path(
            lambda path, old, new: new if "head" in jax.tree_util.keystr(path) else old, state.opt_state, slots
        )
        return state.replace(params=params, opt_state=kept, model_state={"labels": labels.astype(np.float32)})

    def batch(data, step, key):
        return {"rows": jax.random.randint(key, (config.batch_size,), 0, EXAMPLES)}

    def step(state, data, batch, key):
        rows = batch["rows"]
        drawn = {"x": data["x"][rows], "y": state.model_state["labels"][rows]}
        return regression_step(config, state, data, drawn, key)

    return regression(
        config, init=init, batch=batch, train_step=step, refresh=refreshed, refresh_every=config.refresh_every_steps
    )


def host_step(config: ConfigDict) -> Experiment:
    """A search: candidates are drawn and chosen on the host, judged by a compiled piece; its history is kept."""
    judge = jax.jit(jax.vmap(lambda params, batch: square_error(params, batch).mean(), in_axes=(0, None)))

    def init(data, key):
        history = jnp.full((config.num_steps,), jnp.inf)
        return TrainState(jnp.int32(0), init_mlp(config.width, key), {}, {"history": history})

    def step(state, data, batch, key):
        if config.slow == "host_step" and state.step >= 1:
            sleep(config.slow_seconds)
        keys = jax.random.split(key, 4)
        proposals = [
            jax.tree.map(lambda leaf, k=k: leaf + 0.1 * jax.random.normal(k, leaf.shape), state.params) for k in keys
        ]
        candidates = jax.tree.map(lambda *leaves: np.stack(leaves), state.params, *proposals)
        losses = np.asarray(judge(candidates, batch))
        best = int(losses.argmin())
        history = np.asarray(state.model_state["history"]).copy()
        history[int(state.step)] = losses[best]
        params = jax.tree.map(lambda leaf: leaf[best], candidates)
        return state.replace(params=params, model_state={"history": history}), {"loss": (losses[best], 1)}

    return regression(config, init=init, train_step=step, host_step=True)


class _Net(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(self.width, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(2)(x)


def batch_norm(config: ConfigDict) -> Experiment:
    """Running statistics in `model_state`."""
    net = _Net(config.width)

    def init(data, key):
        variables = net.init(key, data["x"][:1], train=True)
        params = variables["params"]
        return TrainState(jnp.int32(0), params, optimizer(config).init(params), variables["batch_stats"])

    def step(state, data, batch, key):
        def loss_of(params):
            variables = {"params": params, "batch_stats": state.model_state}
            out, new = net.apply(variables, batch["x"], train=True, mutable=["batch_stats"])
            return jnp.sum((out - batch["y"]) ** 2, axis=-1).mean(), new["batch_stats"]

        (loss, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        state = apply_gradients(state, optimizer(config), gradients)
        return state.replace(model_state=statistics), {"loss": (loss, 1)}

    def error(state, batch):
        variables = {"params": state.params, "batch_stats": state.model_state}
        return jnp.sum((net.apply(variables, batch["x"], train=False) - batch["y"]) ** 2, axis=-1)

    return regression(config, init=init, train_step=step, evaluate=make_evaluate(config, error))


def few_shot(config: ConfigDict) -> Experiment:
    """Second-order meta-learning, one task after the other, the tasks shared out over the devices."""

    def batch(data, step, key):
        rows = jax.random.randint(key, (config.batch_size, 10), 0, EXAMPLES)
        scales = 1 + 0.3 * jax.random.normal(rng.stream(0, "scales", step), (config.batch_size, 1, 1))
        return {"x": data["x"][rows], "y": data["y"][rows] * scales}

    def own_tasks(params, tasks):
        return jax.lax.map(functools.partial(query_loss, params), tasks)

    def step(state, data, batch, key):
        def loss_of(params):
            return parallel.map_shards(own_tasks)(params, batch).mean()

        loss, gradients = jax.value_and_grad(loss_of)(state.params)
        norm = optax.tree.norm(gradients)
        return apply_gradients(state, optimizer(config), gradients), {"loss": (loss, 1), "gradient": (norm, 1)}

    return regression(config, batch=batch, train_step=step)


def query_loss(params, task):
    """Of one task, after one inner step on the first half of its examples."""
    support, query = ({name: leaf[part] for name, leaf in task.items()} for part in (slice(5), slice(5, 10)))
    gradients = jax.grad(lambda inner: square_error(inner, support).mean())(params)
    adapted = jax.tree.map(lambda leaf, gradient: leaf - 0.1 * gradient, params, gradients)
    return square_error(adapted, query).mean()


BUILDERS = {
    "regression": regression,
    "batch_norm": batch_norm,
    "host_batch": host_batch,
    "two_optimizers": two_optimizers,
    "refresh": refresh,
    "host_step": host_step,
    "phases": regression,
    "warm_up": warm_up,
    "done": done,
    "few_shot": few_shot,
}
