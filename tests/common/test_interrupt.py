"""Signals and kills, on toys that run as processes of their own."""

import random
import re
import signal
import time

import pytest

from common.interrupt import Interrupted, StopRequest
from tests.common.toys import running


def lines_of(folder):
    """How many lines of metrics there are by now."""
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def stop(process, number=signal.SIGTERM, seconds=10.0):
    """Send a signal, which must end the process in time and politely; what it printed last."""
    sent = time.monotonic()
    process.send_signal(number)
    out, error = running.finish(process)
    assert time.monotonic() - sent < seconds
    assert "run the same command to resume" in out + error
    assert "Traceback" not in error
    return out + error


# --- in this process ------------------------------------------------------------------------------------------------


def test_signal_inside_interruptible_code():
    with StopRequest("") as request:
        with pytest.raises(Interrupted), request.interruptible():
            signal.raise_signal(signal.SIGTERM)
        assert request.requested
        with pytest.raises(Interrupted), request.interruptible():
            pytest.fail("entered although a stop is wanted")
        request.acknowledge()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_signal_outside_is_remembered():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with StopRequest("") as request:
        signal.raise_signal(signal.SIGINT)
        assert request.requested
        assert request.agreed
        request.acknowledge()
    assert signal.signal(signal.SIGINT, before) == signal.default_int_handler


def test_one_of_several_processes_is_never_interrupted_alone():
    with StopRequest("", alone=False) as request:
        with request.interruptible():
            signal.raise_signal(signal.SIGTERM)
        assert request.requested
        assert not request.agreed
        request.agreed = True
        with pytest.raises(Interrupted), request.interruptible():
            pytest.fail("entered although all have agreed to stop")
        request.acknowledge()


# --- killed ---------------------------------------------------------------------------------------------------------


def assert_killed_equals_straight(config, folder, kills, seed):
    running.run(config, folder / "straight")
    moments, last = random.Random(seed), 0
    for kill in range(kills):
        process = running.start(config, folder / "run")
        if kill == 0:  # while a checkpoint is being written
            running.wait_until(lambda: any(folder.glob("run/**/checkpoints/*tmp*")), process)
        else:
            goal = last + moments.randint(1, 8)
            running.wait_until(lambda goal=goal: lines_of(folder / "run") >= goal, process)
            time.sleep(moments.random() / 20)
        process.kill()
        process.communicate()
        last = lines_of(folder / "run")
    running.run(config, folder / "run")
    running.assert_same_run(folder / "straight", folder / "run")


def test_killed_run_equals_straight_one(tmp_path):
    config = running.toy("refresh", num_steps=60, width=256, learning_rate=0.001, save_every_steps=2)
    assert_killed_equals_straight(config, tmp_path, kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kills"),
    [
        *[(name, 4) for name in ("regression", "host_batch")],
        *[(name, 2) for name in ("two_optimizers", "refresh", "host_step", "warm_up")],
    ],
)
def test_killed_runs_of_all_kinds_equal_straight_ones(name, kills, tmp_path):
    width = 8 if name == "few_shot" else 256  # its inner steps diverge on a wide network
    config = running.toy(name, num_steps=60, width=width, learning_rate=0.001, save_every_steps=2)
    assert_killed_equals_straight(config, tmp_path, kills=kills, seed=len(name))


@pytest.mark.slow
def test_phases_killed_equal_straight_ones(tmp_path):
    config = running.toy("phases", num_steps=40, width=128, save_every_steps=2)
    assert_killed_equals_straight(config, tmp_path, kills=3, seed=5)


# --- asked to stop --------------------------------------------------------------------------------------------------


def test_sigterm_saves_and_the_resumed_run_equals_the_straight_one(tmp_path):
    config = running.toy("host_batch", num_steps=3000, log_every_steps=100, eval_every_steps=500, save_every_steps=500)
    process = running.start(config, tmp_path / "run")
    running.wait_until(lambda: lines_of(tmp_path / "run") >= 3, process)
    assert re.search(r"stopped, saved at step \d+;", stop(process))
    assert not (tmp_path / "run" / "DONE").exists()
    running.run(config, tmp_path / "run")
    running.run(config, tmp_path / "straight")
    running.assert_same_run(tmp_path / "straight", tmp_path / "run")


@pytest.mark.slow
def test_sigterm_during_evaluation_is_made_up_for(tmp_path):
    config = running.toy(slow="evaluate", slow_seconds=1.0, eval_every_steps=10)
    process = running.start(config, tmp_path / "run")
    running.wait_until(lambda: lines_of(tmp_path / "run") >= 3, process)  # 3, 6, 9: the evaluation of step 10 is next
    time.sleep(0.3)
    assert "stopped, saved at step 10;" in stop(process)
    assert [line["step"] for line in running.metrics(tmp_path / "run")] == [3, 6, 9]
    running.run(config, tmp_path / "run")
    running.train(config, tmp_path / "straight")
    running.assert_same_run(tmp_path / "straight", tmp_path / "run")


@pytest.mark.slow
def test_sigterm_during_a_long_host_step_abandons_it(tmp_path):
    config = running.toy("host_step", num_steps=3, slow="host_step", slow_seconds=30.0, save_every_steps=1)
    process = running.start(config, tmp_path)
    running.wait_until(lambda: (tmp_path / "checkpoints" / "1").exists(), process)
    assert "stopped, saved at step 1;" in stop(process)
    assert running.state_on_disk(tmp_path)["['step']"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("slow", ["compile", "step"])
def test_sigterm_in_the_middle_of_something_long_that_holds_the_main_thread(slow, tmp_path):
    config = running.toy(slow=slow, slow_seconds=60.0)
    process = running.start(config, tmp_path)
    running.wait_until(lambda: (tmp_path / "metrics.jsonl").exists(), process)
    time.sleep(3)
    assert "Stopped in the middle of a long step or compilation, which is abandoned." in stop(process)


@pytest.mark.slow
def test_second_interrupt_leaves_at_once(tmp_path):
    config = running.toy(slow="step", slow_seconds=60.0)
    process = running.start(config, tmp_path)
    running.wait_until(lambda: (tmp_path / "metrics.jsonl").exists(), process)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, error = running.finish(process, code=1)
    assert time.monotonic() - sent < 2
    assert "Stopped at once." in error
