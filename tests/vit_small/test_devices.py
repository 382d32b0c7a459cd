"""Eight virtual devices train as one does."""

import numpy as np
import pytest

from tests.common.toys import running
from tests.vit_small import cli

# Plain SGD: Adam turns rounding noise into full steps. All of the recipe that draws random numbers is on.
CONFIG = """
import importlib


def get_config(name):
    config = importlib.import_module(f"vit_small.configs.{name}").get_config("smoke")
    config.optimizer.update({"name": "sgd", "schedule": "constant", "learning_rate": 0.05, "weight_decay": 0.0})
    config.optimizer.momentum = 0.0
    config.optimizer.nesterov = False
    config.drop_path = 0.2
    config.augmentation.flip = 0.5
    config.augmentation.erase = 0.25
    config.spt = config.lsa = True
    config.num_steps = config.eval_every_steps = config.save_every_steps = 20
    return config
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_eight_devices_equal_one(name, tmp_path):
    file = tmp_path / "sgd.py"
    file.write_text(CONFIG)
    for devices in (1, 8):
        cli.run("main", *cli.flags(f"{file}:{name}", tmp_path / str(devices)), devices=devices)
    one, eight = tmp_path / "1", tmp_path / "8"
    running.assert_same_arrays(running.state_on_disk(one), running.state_on_disk(eight), 5e-6)
    for a, b in zip(running.metrics(one), running.metrics(eight), strict=True):
        values = [[line[key] for key in sorted(line.keys() - {"kind"})] for line in (a, b)]
        np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5)
    first, last = (line["loss"] for line in (running.metrics(one)[0], running.metrics(one)[-1]))
    assert first != last
