"""The same program on one device, on eight, and in two processes."""

import signal
import time

import jax
import numpy as np
import pytest

from common import loop, parallel
from common.checkpoint import Checkpoints
from common.errors import UserError
from tests.common.toys import running

SGD = {"momentum": 0.0, "num_steps": 20}


def assert_close_runs(a, b, tolerance=1e-6):
    """Final states and metrics of two runs within rounding."""
    running.assert_same_arrays(running.state_on_disk(a), running.state_on_disk(b), tolerance)
    for one, other in zip(running.metrics(a), running.metrics(b), strict=True):
        assert one.keys() == other.keys()
        assert [one["step"], one["kind"]] == [other["step"], other["kind"]]
        for name in one.keys() - {"step", "kind"}:
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-6), (name, one)


def start_two(config, folder, *flags):
    """Two processes of one device each."""
    cluster = ["--multihost", f"--coordinator=localhost:{running.free_port()}", "--num_processes=2"]
    return [running.start(config, folder, *flags, *cluster, f"--process_id={i}") for i in range(2)]


def test_eight_devices_equal_one(tmp_path):
    config = running.toy("batch_norm", **SGD)
    running.run(config, tmp_path / "eight", devices=8)
    running.train(config, tmp_path / "one")
    assert_close_runs(tmp_path / "one", tmp_path / "eight")


def test_matrices_are_decomposed_one_by_one_on_any_number_of_devices():
    program = """
import jax, jax.numpy as jnp, numpy as np
from common import parallel
for size in (1, 6, 8):  # 6 do not divide over the devices
    x = np.random.default_rng(0).normal(size=(size, 4, 4)).astype(np.float32)
    x = x + x.swapaxes(1, 2)
    decompose = jax.jit(lambda x: parallel.map_examples(jnp.linalg.eigh, x))
    assert "(tensor<4x4xf32>)" in decompose.lower(x).as_text()
    placed = parallel.place(x, parallel.replicated() if size % 8 else parallel.batched())
    values, vectors = decompose(placed)
    np.testing.assert_allclose(np.einsum("bij,bj,bkj->bik", vectors, values, vectors), x, atol=1e-5)
"""
    running.run_program(program, devices=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["regression", "host_batch", "two_optimizers", "refresh", "few_shot", "warm_up"])
def test_eight_devices_equal_one_for_every_toy(name, tmp_path):
    config = running.toy(name, **SGD)
    running.run(config, tmp_path / "eight", devices=8)
    running.train(config, tmp_path / "one")
    assert_close_runs(tmp_path / "one", tmp_path / "eight", 1e-5 if name == "two_optimizers" else 1e-6)
    if name == "few_shot":  # one step of SGD shows the gradient; a factor would be the number of devices
        norms = [
            [line["gradient"] for line in running.metrics(tmp_path / f) if "gradient" in line] for f in ("one", "eight")
        ]
        np.testing.assert_allclose(np.divide(*norms), 1, atol=1e-5)


@pytest.mark.slow
def test_saved_on_eight_devices_restored_on_one_and_back(tmp_path):
    config = running.toy("two_optimizers", num_steps=10)
    program = (
        "import sys; from pathlib import Path; from tests.common.toys import running\n"
        "running.train(running.toy('two_optimizers', num_steps=10), Path(sys.argv[1]))"
    )
    running.run_program(program, str(tmp_path / "eight"), devices=8)
    first = Checkpoints(tmp_path / "eight" / "checkpoints", read_only=True)
    built = running.experiment.build(config, {})
    step, state, _ = first.restore_latest(loop.abstract_state(built, built.data, config.seed))
    running.assert_same_arrays(running.arrays(first.restore_as_saved(step)), running.state_on_disk(tmp_path / "eight"))
    second = Checkpoints(tmp_path / "one" / "checkpoints")
    second.save(step, state, {})
    second.close()
    program = (
        "import sys; from pathlib import Path; from tests.common.toys import running\n"
        "a, b = (running.state_on_disk(Path(folder)) for folder in sys.argv[1:])\n"
        "running.assert_same_arrays(a, b); print(len(a))"
    )
    assert (
        running.run_program(program, str(tmp_path / "eight"), str(tmp_path / "one"), devices=8)
        == f"{len(jax.tree.leaves(state))}\n"
    )
    running.train(running.toy("two_optimizers", resume_from=str(tmp_path / "eight")), tmp_path / "on")
    running.train(running.toy("two_optimizers"), tmp_path / "straight")
    running.assert_same_arrays(
        running.state_on_disk(tmp_path / "on"), running.state_on_disk(tmp_path / "straight"), 1e-4
    )


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    for name in ("host_batch", "refresh", "phases"):  # batch normalisation, few-shot: test_devices.py of the methods
        config, folder = running.toy(name, **SGD), tmp_path / name
        outputs = [running.finish(process)[0] for process in start_two(config, folder / "two")]
        running.train(config, folder / "one")
        for phase in ["teacher", "student"] if name == "phases" else [""]:
            assert_close_runs(folder / "one" / phase, folder / "two" / phase)
        assert "train step compiled" in outputs[0]


@pytest.mark.slow
def test_two_processes_equal_one_and_stop_together(tmp_path):
    config = running.toy(
        "batch_norm",
        **(SGD | {"num_steps": 2000, "log_every_steps": 20, "save_every_steps": 500, "eval_every_steps": 1000}),
    )
    folder = tmp_path / "two"
    processes = start_two(config, folder)
    running.wait_until(
        lambda: (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size > 400, processes[1]
    )
    processes[1].send_signal(signal.SIGTERM)  # one alone is told
    sent = time.monotonic()
    stopped = [running.finish(process)[0] for process in processes]
    assert time.monotonic() - sent < 20
    assert all("stopped, saved at step" in out for out in stopped)
    for process in start_two(config, folder):
        assert "resumed at step" in running.finish(process)[0]
    running.train(config, tmp_path / "one")
    assert_close_runs(tmp_path / "one", folder, 1e-5)


@pytest.mark.slow
def test_rows_split_over_the_devices_give_the_same(tmp_path):
    """Large data arrays live in parts; the smallest size for that is set to nothing here."""
    program = (
        "from common import parallel; parallel.SHARD_ROWS_FROM_BYTES = 1\n"
        "import jax, sys; from pathlib import Path; from tests.common.toys import experiment, running\n"
        "placed = parallel.place_data(experiment.make_data())\n"
        "assert placed['x'].sharding.spec == jax.sharding.PartitionSpec('data'), placed['x'].sharding\n"
        "running.train(running.toy(momentum=0.0), Path(sys.argv[1]))"
    )
    running.run_program(program, str(tmp_path / "eight"), devices=8)
    running.train(running.toy(momentum=0.0), tmp_path / "one")
    assert_close_runs(tmp_path / "one", tmp_path / "eight")


def test_indivisible_batch_is_a_sentence(tmp_path):
    for name in ("regression", "host_batch"):
        _, error = running.run(running.toy(name, batch_size=12), tmp_path / name, devices=8, code=2)
        assert "Error: config.batch_size gives a global batch of 12, which does not divide over 8 devices;" in error
        assert error.endswith("choose a multiple of 8.\n")
        assert "Traceback" not in error


def test_a_batch_leaf_without_rows_is_refused():
    with pytest.raises(UserError, match=r"config.tasks_per_step gives a global batch of 0"):
        parallel.check_batch({"x": np.zeros(()), "y": np.zeros(3)}, "tasks_per_step")


def test_placing_leaves_what_is_there_alone():
    there = parallel.place({"a": np.arange(4), "key": jax.random.key(0)}, parallel.replicated())
    again = parallel.place(there, parallel.replicated())
    assert again["a"] is there["a"]
    assert again["key"] is there["key"]


def test_rows_are_made_for_each_device_alone():
    program = (
        "import jax, numpy as np\n"
        "from common import parallel\n"
        "whole, asked = np.arange(48.0).reshape(16, 3), []\n"
        "def make(part):\n"
        "    asked.append(part)\n"
        "    return whole[part]\n"
        "rows = parallel.Rows((16, 3), make)\n"
        "parallel.check_batch({'a': rows}, 'batch_size')\n"
        "placed = parallel.place({'a': rows}, parallel.batched())['a']\n"
        "np.testing.assert_array_equal(placed, whole)\n"
        "assert sorted(part.start or 0 for part in asked) == list(range(0, 16, 2)), asked\n"
        "print(placed.sharding.spec == jax.sharding.PartitionSpec('data'))"
    )
    assert running.run_program(program, devices=8) == "True\n"


def test_multihost_without_a_cluster_is_a_sentence(tmp_path):
    _, error = running.run(running.toy(), tmp_path / "run", "--multihost", code=2)
    assert "--multihost found no cluster that JAX knows" in error
    assert "Traceback" not in error
