"""Eight virtual devices train as one does: matching is over the global batch."""

import numpy as np
import pytest

from tests.common.toys import running
from tests.fer import cli

# Plain SGD: Adam turns rounding noise into full steps. And small steps: at ten times this rate, rounding carries a
# latent of this tiny network over the kink of its ReLU in step 16 (until then all metrics agree to 1e-5).
CONFIG = """
from fer.configs import elim


def get_config(matching):
    config = elim.get_config("smoke")
    config.optimizer.update({"name": "sgd", "schedule": "constant", "learning_rate": 0.002})
    config.optimizer.momentum = 0.0
    config.optimizer.nesterov = False
    config.model.dropout = 0.2
    config.matching.solver = matching
    config.header_statistics = "all"
    config.num_steps = config.eval_every_steps = config.save_every_steps = 20
    return config
"""


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["official", "ott"])
def test_eight_devices_equal_one(solver, tmp_path):
    file = tmp_path / "sgd.py"
    file.write_text(CONFIG)
    for devices in (1, 8):
        cli.run("main", *cli.flags(f"{file}:{solver}", tmp_path / str(devices)), devices=devices)
    one, eight = tmp_path / "1", tmp_path / "8"
    running.assert_same_arrays(running.state_on_disk(one), running.state_on_disk(eight), 5e-6)
    for a, b in zip(running.metrics(one), running.metrics(eight), strict=True):
        values = [[line[key] for key in sorted(line.keys() - {"kind"})] for line in (a, b)]
        np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-4)
    first, last = (line["loss"] for line in (running.metrics(one)[0], running.metrics(one)[-2]))
    assert first != last
