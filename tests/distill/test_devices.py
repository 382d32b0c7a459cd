"""Eight virtual devices train as one does: batch graphs are over the global batch."""

import sys

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


def compare(name: str, teacher: str) -> None:
    """A few steps of every phase behind the teacher's on one of eight devices and on all, at the config's rates."""
    # Crops do not compile in 64 bits; their places come from keys of the images.
    config, finished = cli.config(name, teacher_checkpoint=teacher, **{"augmentation.crop_padding": 0}), {}
    for phase in experiment.phases(config):
        built = phase.build(phases.phase_config(config, phase), finished)
        start = double(jax.device_get(jax.jit(built.init)(built.data, jax.random.key(0))))
        states = {}
        for devices in (1, 8):
            mesh = parallel.Mesh(np.array(jax.devices()[:devices]), ("data",))
            parallel.mesh = lambda mesh=mesh: mesh
            stepper = step.Stepper(built, parallel.place_data(double(built.data)), config.seed)
            state = parallel.place(start, parallel.replicated())
            for number in range(STEPS):
                state, _ = stepper(state, step.restore_accumulated({}), number)
            states[devices] = running.arrays(jax.device_get(state))
        assert any(array.dtype == np.float64 for array in states[1].values())
        running.assert_same_arrays(states[1], states[8], TOLERANCE)
        moved = [path for path, one in states[1].items() if not np.array_equal(one, running.arrays(start)[path])]
        print(phase.name, len(moved))
        finished[phase.name] = state


@pytest.mark.slow
@pytest.mark.parametrize("name", ["at", "mhgd"])
def test_eight_devices_equal_one(name, finished):
    settings = {"JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    program = f"from tests.distill import test_devices; test_devices.compare({name!r}, {str(finished.folder)!r})"
    out, _ = running.finish(running.open_process([sys.executable, "-c", program], 8, **settings))
    moved = dict(line.split() for line in out.splitlines())
    assert list(moved) == (["modules", "student"] if name == "mhgd" else ["student"])
    assert min(map(int, moved.values())) > 10
