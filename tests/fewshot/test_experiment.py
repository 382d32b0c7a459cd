"""Which data, episodes, parameters and programs a config stands for, that every option runs, and that they learn."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import loop, parallel, rng
from common.data import registry
from common.experiment import Experiment
from fewshot import episodes, experiment
from tests.common.toys import running
from tests.fewshot import cli


def build(name="cxgrad", **fields):
    return experiment.build(cli.config(name, **fields), {})


def load_splits():
    options = {"difficulty": "easy", "instances_per_class": 20}
    return registry.load("glyphs", task="fewshot", image_size=16, channels=1, options=options).splits


def host_batch(built: Experiment, seed: int, step: int) -> np.ndarray:
    assert built.host_batch is not None
    return built.host_batch(seed, step)


def device_batch(built: Experiment, step: int) -> jax.Array:
    assert built.batch is not None
    return built.batch(built.data, jnp.asarray(step), rng.stream(0, "batch", step))


# --- data and episodes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["device", "official"])
def test_training_episodes_hold_training_classes_alone(sampler):
    built = build(sampler=sampler, tasks_per_step=250)
    splits = load_splits()
    names = {split: set(data.class_names) for split, data in splits.items()}
    assert not names["train"] & names["validation"]
    assert not (names["train"] | names["validation"]) & names["test"]
    pictures = {name: {image.tobytes() for image in built.data[name]} for name in ("train", "held_out")}
    assert not pictures["train"] & pictures["held_out"]

    labels, seen = splits["train"].labels, set()
    for step in range(4):
        drawn = host_batch(built, 0, step) if sampler == "official" else device_batch(built, step)
        batch = np.asarray(drawn)
        assert batch.shape == (250, 5, 4)
        assert all(len(np.unique(episode)) == 20 for episode in batch)  # support and query share no image
        classes = labels[batch]
        assert (classes == classes[:, :, :1]).all()
        assert all(len(np.unique(episode[:, 0])) == 5 for episode in classes)
        seen |= set(batch.ravel().tolist())
    assert len(seen) > 0.5 * len(labels)
    assert max(seen) < len(built.data["train"])


def test_evaluation_episodes_are_the_official_ones_whatever_the_seed():
    first, second = build(seed=0, test_episodes=9), build(seed=5, test_episodes=9)
    splits = load_splits()
    expected, offset = [], 0
    for split, count in (("validation", 6), ("test", 9)):
        sizes = np.bincount(splits[split].labels)
        expected.append(episodes.official_episodes(985773, 0, count, sizes, 5, 1, 3) + offset)
        offset += len(splits[split].labels)
    for built in (first, second):
        np.testing.assert_array_equal(built.data["episodes"], np.concatenate(expected))
        np.testing.assert_array_equal(built.data["held_out"][offset - 1], splits["test"].images[-1])


def test_official_training_episodes_count_on():
    built = build(sampler="official")
    sizes = np.full(len(built.data["train"]) // 20, 20)
    drawn = np.concatenate([host_batch(built, 0, step) for step in range(3)])
    np.testing.assert_array_equal(drawn, episodes.official_episodes(985773, 0, 6, sizes, 5, 1, 3))
    assert (host_batch(built, 1, 0) != host_batch(built, 0, 0)).any()


def test_model_seed_decides_the_initial_parameters():
    def parameters(**fields):
        built = build(**fields)
        return running.arrays(built.init(built.data, rng.stream(fields.get("seed", 0), "init")).params)

    seven = parameters(seed=3, model_seed=7)
    running.assert_same_arrays(seven, parameters(seed=7))
    other = parameters(seed=3, model_seed=8)
    kernels = [path for path in other if "kernel" in path]
    assert len(kernels) == 7  # four convolutions, the head, the generator's two
    assert all((other[path] != seven[path]).any() for path in kernels)


def test_evaluation_does_not_depend_on_the_batch(little_optimization):
    values = []
    for batch in (3, 8):
        built = build("maml", episodes_per_batch=batch, eval_episodes=8)
        data = parallel.place_data(built.data)
        values.append(built.evaluate(built.init(data, rng.stream(0, "init")), data))
    assert values[0] == pytest.approx(values[1], rel=1e-5)


# --- options --------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "data": {"normalize": "dataset", "dtype": "bfloat16", "batch_norm": "support_stats", "ensemble": "probabilities"},
    "network": {"norm": "layer", "pooling": False, "remat": "on", "ways": 2, "shots": 2},
    "MAML++": {"learned_inner_rates": True, "multi_step_loss_epochs": 1, "per_step_norm": True},
    "first order": {"second_order": False, "context": "off", "adapted": "all_and_norm"},
    "unrolled": {"scaling": "fixed_one", "inner_loop": "unroll", "task_loop": "map", "remat": "on"},
    "optimizer": {"optimizer.name": "adamw", "optimizer.clip_norm": 1.0, "optimizer.schedule": "cosine"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_options_run_with_cxgrad(name, tmp_path):
    cli.run("cxgrad", tmp_path, num_steps=3, **OPTIONS[name])
    lines = [line for line in running.metrics(tmp_path) if line["kind"] == "train"]
    assert len(lines) == 3
    state = running.state_on_disk(tmp_path)
    assert all(np.isfinite(array).all() for array in state.values())
    if "scaling" in OPTIONS[name] or "context" in OPTIONS[name]:
        assert all(line["context_norm"] == 0 for line in lines)
    if "scaling" in OPTIONS[name]:
        assert all(line[f"gamma_{layer}"] == pytest.approx(1) for line in lines for layer in range(4))
        assert not any("generator" in path for path in state)
    if "learned_inner_rates" in OPTIONS[name]:
        rates = {path: array for path, array in state.items() if path.startswith("['params']['rates']")}
        assert len(rates) == 6
        assert all((array[:2] != np.float32(0.01)).all() for array in rates.values())
        assert all(array[2] == np.float32(0.01) for array in rates.values())  # never used


# --- learning -------------------------------------------------------------------------------------------------------

EASY: dict[str, Any] = {
    "filters": 16,
    "context_size": 20,
    "tasks_per_step": 4,
    "queries": 5,
    "inner_learning_rate": 0.05,
    "optimizer.learning_rate": 5e-3,
    "num_steps": 120,
    "eval_every_steps": 120,
    "save_every_steps": 120,
    "log_every_steps": 20,
    "eval_episodes": 40,
    "test_episodes": 60,
    "episodes_per_batch": 20,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["maml", "cxgrad"])
def test_learns_characters_of_unseen_scripts(name, tmp_path):
    results = cli.train(cli.config(name, **EASY), tmp_path).results
    accuracy, margin = results["test_best_single_accuracy"], results["test_best_single_ci95_per_episode"]
    assert accuracy - margin > 0.35, results  # chance is 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["maml", "cxgrad"])
def test_overfits_one_batch_of_tasks(name, tmp_path):
    config = cli.config(name, **EASY | {"tasks_per_step": 2, "num_steps": 200, "eval_every_steps": 200})
    built = experiment.build(config, {})
    fixed = device_batch(built, 0)
    built = dataclasses.replace(built, batch=lambda data, step, key: fixed)
    assert loop.fit(built, config, tmp_path).finished
    losses = [line["loss"] for line in running.metrics(tmp_path) if line["kind"] == "train"]
    assert losses[-1] < 0.05 < 0.5 < losses[0]  # the first is a mean over 20 steps
