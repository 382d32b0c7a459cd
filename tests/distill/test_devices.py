"""Eight virtual devices train as one does: batch graphs are over the global batch."""

import numpy as np
import pytest

from tests.common.toys import running
from tests.distill import cli

# Without momentum and over 20 steps at a small rate, so that rounding does not grow.
FIELDS = {"optimizer.momentum": 0.0, "optimizer.nesterov": False, "optimizer.learning_rate": 0.001, "num_steps": 20}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["at", "mhgd"])
def test_eight_devices_equal_one(name, finished, tmp_path):
    fields = {**FIELDS, "teacher_checkpoint": finished.folder, "module_learning_rate": 0.01}
    for devices in (1, 8):
        cli.run(*cli.flags(name, tmp_path / str(devices), **fields), devices=devices)
    for phase in ("modules", "student") if name == "mhgd" else ("student",):
        one, eight = tmp_path / "1" / phase, tmp_path / "8" / phase
        running.assert_same_arrays(running.state_on_disk(one), running.state_on_disk(eight), 1e-4)
        for a, b in zip(running.metrics(one), running.metrics(eight), strict=True):
            values = [[line[key] for key in sorted(line.keys() - {"kind", "accuracy"})] for line in (a, b)]
            np.testing.assert_allclose(*values, rtol=1e-3, atol=1e-4)
