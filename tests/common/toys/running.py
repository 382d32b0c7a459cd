"""Runs toys, in this process and in others, and compares what two runs left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common import loop, phases, writers
from common.checkpoint import Checkpoints
from common.config import flatten
from common.step import Stepper
from tests.common.toys import experiment
from tests.common.toys.config import get_config

ROOT = Path(__file__).parents[3]
CONFIG = "tests/common/toys/config.py"


class Run(NamedTuple):
    """A finished run from the command line: its work directory, the fields that were changed, what it printed."""

    folder: Path
    fields: dict[str, Any]
    out: str


def toy(name: str = "regression", **fields):
    """The config of a toy with some fields changed."""
    config = get_config(name)
    config.update(fields)
    return config.lock()


def train(config, folder: Path) -> dict[str, loop.Outcome]:
    """Train in this process."""
    return phases.train(experiment.phases(config), config, folder)


def evaluate(config, folder: Path) -> dict[str, float]:
    """Evaluate in this process."""
    return phases.evaluate(experiment.phases(config), config, folder)


def stop_after(monkeypatch, step: int) -> None:
    """Have the next run in this process get SIGTERM while it makes step `step`."""
    original = Stepper.__call__

    def call(self, state, accumulated, before):
        if before + 1 == step:
            monkeypatch.setattr(Stepper, "__call__", original)
            signal.raise_signal(signal.SIGTERM)
        return original(self, state, accumulated, before)

    monkeypatch.setattr(Stepper, "__call__", call)


def state_on_disk(folder: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """{path: array} of the latest checkpoint or that of `step`."""
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    tree = checkpoints.restore_as_saved(checkpoints.steps()[-1] if step is None else step)
    checkpoints.close()
    return arrays(tree)


def arrays(tree) -> dict[str, np.ndarray]:
    """{path: array}; of random keys, their data."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        found[jax.tree_util.keystr(path)] = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    return found


def assert_same_arrays(a: dict[str, np.ndarray], b: dict[str, np.ndarray], tolerance: float = 0.0) -> None:
    """Bitwise by default."""
    assert a.keys() == b.keys()
    for path, array in a.items():
        assert array.dtype == b[path].dtype, path
        np.testing.assert_allclose(array, b[path], rtol=0, atol=tolerance, err_msg=path)


def metrics(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl without wall times."""
    return writers.without_wall(writers.read(folder / "metrics.jsonl"))


def logged_step(folder: Path) -> int:
    """The step of the last whole line of metrics.jsonl, 0 before the first."""
    lines = metrics(folder) if (folder / "metrics.jsonl").exists() else []
    return lines[-1]["step"] if lines else 0


def assert_same_run(a: Path, b: Path) -> None:
    """Equal files, final states bit for bit, and metrics line by line, in every phase."""
    folders = sorted(path.parent.relative_to(a) for path in a.rglob("metrics.jsonl"))
    assert folders
    assert folders == sorted(path.parent.relative_to(b) for path in b.rglob("metrics.jsonl"))
    for folder in folders:
        assert metrics(a / folder) == metrics(b / folder)
        assert_same_arrays(state_on_disk(a / folder), state_on_disk(b / folder))
        for name in ("results.json", "DONE"):
            assert (a / folder / name).read_bytes() == (b / folder / name).read_bytes()
        assert best(a / folder) == best(b / folder)


def best(folder: Path) -> list[int]:
    """Steps of the best two checkpoints."""
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    steps = checkpoints.best_steps(2)
    checkpoints.close()
    return steps


def command(config, folder: Path, *flags: str) -> list[str]:
    """The command line of a toy's run; compiled programs are shared between the folder's neighbours."""
    default = flatten(get_config())
    changed = [f"--config.{field}={value}" for field, value in flatten(config).items() if value != default[field]]
    shared = f"--compilation_cache={folder.parent / 'compiled'}"
    run = [f"--config={CONFIG}", *changed, f"--workdir={folder}", shared, *flags]
    return [sys.executable, "-m", "tests.common.toys.main", *run]


def start(config, folder: Path, *flags: str, devices: int = 1) -> subprocess.Popen:
    """A toy's run as a process of its own, on `devices` virtual devices."""
    return open_process(command(config, folder, *flags), devices)


def open_process(arguments: list[str], devices: int = 1, **settings: str) -> subprocess.Popen:
    """Start a program on `devices` virtual devices, in the root of the repository; `settings`: its environment."""
    settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"} | settings
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, cwd=ROOT, env=os.environ | settings, stdout=pipe, stderr=pipe, text=True)


def start_module(module: str, *arguments: str, devices: int = 1) -> subprocess.Popen:
    """`python -m <module>`, with little optimisation by the compiler: such tests compile more than they compute."""
    command = [sys.executable, "-m", module, *arguments]
    return open_process(command, devices, JAX_DISABLE_MOST_OPTIMIZATIONS="1")


def run_module(module: str, *arguments: str, devices: int = 1, code: int = 0) -> tuple[str, str]:
    """Start it and wait for its end; (standard output, standard error)."""
    return finish(start_module(module, *arguments, devices=devices), code)


def flags(file: str, folder: Path, fields: Mapping[str, object]) -> list[str]:
    """The flags of a run: a config file, the fields changed in it, the work directory."""
    return [f"--config={file}", *(f"--config.{name}={value}" for name, value in fields.items()), f"--workdir={folder}"]


def run_program(program: str, *arguments: str, devices: int = 1) -> str:
    """Run Python code in a process of its own; what it prints."""
    return finish(open_process([sys.executable, "-c", program, *arguments], devices))[0]


def finish(process: subprocess.Popen, code: int = 0, seconds: float = 240) -> tuple[str, str]:
    """Wait for the end of a process, which must have this exit code; (standard output, standard error)."""
    try:
        out, error = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{error}"
    return out, error


def run(config, folder: Path, *flags: str, devices: int = 1, code: int = 0) -> tuple[str, str]:
    """Start and finish."""
    return finish(start(config, folder, *flags, devices=devices), code)


def wait_until(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    """Until the condition holds or the process ends."""
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
