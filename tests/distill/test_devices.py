"""Eight virtual devices, or two processes, train as one does: batch graphs are over the global batch."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import parallel, phases, step
from distill import experiment
from tests.common.toys import running
from tests.distill import cli

STEPS = 2
TOLERANCE = 1e-10  # the order of sums in 64 bits


def double(tree):
    """The tree with floating point arrays of 64 bits."""

    def leaf(x):
        return x.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(lambda x: leaf(x) if hasattr(x, "astype") else x, tree)


def train(name: str, teacher: str, devices: int) -> dict[str, tuple[Any, Any]]:
    """{phase: (state before, state after)} of a few steps of every phase behind the teacher's, at the config's rates.

    On the first `devices` of all devices.
    """
    # Crops do not compile in 64 bits; their places come from keys of the images.
    config, finished, found = cli.config(name, teacher_checkpoint=teacher, **{"augmentation.crop_padding": 0}), {}, {}
    mesh = parallel.Mesh(np.array(jax.devices()[:devices]), ("data",))
    parallel.mesh = lambda: mesh
    for phase in experiment.phases(config):
        built = phase.build(phases.phase_config(config, phase), finished)
        start = double(jax.device_get(jax.jit(built.init)(built.data, jax.random.key(0))))
        stepper = step.Stepper(built, parallel.place_data(double(built.data)), config.seed)
        state = parallel.place(start, parallel.replicated())
        for number in range(STEPS):
            state, _ = stepper(state, step.restore_accumulated({}), number)
        finished[phase.name] = jax.device_get(state)
        found[phase.name] = (running.arrays(start), running.arrays(finished[phase.name]))
    return found


def compare(name: str, teacher: str) -> None:
    """One of eight devices and all of them."""
    one, eight = (train(name, teacher, devices) for devices in (1, 8))
    for phase, (start, end) in one.items():
        assert any(array.dtype == np.float64 for array in end.values())
        running.assert_same_arrays(end, eight[phase][1], TOLERANCE)
        print(phase, sum(not np.array_equal(array, start[path]) for path, array in end.items()))


def write(teacher: str, file: str, coordinator: str = "", process: int = 0) -> None:
    """MHGD's last state, trained on all devices of this process, or of this and another one."""
    parallel.start_processes(bool(coordinator), coordinator, 2, process)
    *_, (_, end) = train("mhgd", teacher, jax.device_count()).values()
    if process == 0:
        np.savez(file, *(end[path] for path in sorted(end)))
    print(jax.process_count(), jax.device_count())


SETTINGS = {"JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def start_program(call: str, devices: int):
    program = f"from tests.distill import test_devices; test_devices.{call}"
    return running.open_process([sys.executable, "-c", program], devices, **SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["at", "mhgd"])
def test_eight_devices_equal_one(name, finished):
    out, _ = running.finish(start_program(f"compare({name!r}, {str(finished.folder)!r})", 8))
    moved = dict(line.split() for line in out.splitlines())
    assert list(moved) == (["modules", "student"] if name == "mhgd" else ["student"])
    assert min(map(int, moved.values())) > 10


@pytest.mark.slow
def test_two_processes_of_two_devices_equal_one(finished, tmp_path):
    """Phases, batch normalisation and a graph over the whole batch, in one method."""
    teacher, coordinator = str(finished.folder), f"localhost:{running.free_port()}"
    one, two = (str(tmp_path / f"{name}.npz") for name in ("one", "two"))
    together = [start_program(f"write({teacher!r}, {two!r}, {coordinator!r}, {process})", 2) for process in (0, 1)]
    for process in together:
        assert running.finish(process)[0].endswith("2 4\n")
    assert running.finish(start_program(f"write({teacher!r}, {one!r})", 1))[0] == "1 1\n"
    with np.load(one) as alone, np.load(two) as both:
        assert len(alone.files) > 20
        running.assert_same_arrays(dict(alone), dict(both), TOLERANCE)
