"""The speed benchmarks have the flags that their texts and the Makefile name; CFA's runs at its smallest size."""

import importlib
import json
import re

import pytest
from absl import flags

from tests.common.toys import running

NAMES = [*sorted(path.stem for path in (running.ROOT / "benchmarks").glob("*_speed.py")), "fewshot_resnet12"]


@pytest.fixture(scope="module")
def defined():
    """Import a benchmark and give (module, its flags); the flags, which benchmarks share names of, are taken back."""

    def load(name):
        before = set(flags.FLAGS)
        module = importlib.import_module(f"benchmarks.{name}")
        own = set(flags.FLAGS) - before
        for flag in own:
            delattr(flags.FLAGS, flag)
        return module, own

    # The one that takes over flags of another is first.
    return {name: load(name) for name in sorted(NAMES, key=lambda name: (name != "fewshot_resnet12", name))}


@pytest.mark.parametrize("name", NAMES)
def test_flags_that_texts_name_exist(name, defined):
    module, own = defined[name]
    text = module.__doc__ + "".join(re.findall(rf"benchmarks\.{name} .*", (running.ROOT / "Makefile").read_text()))
    named = set(re.findall(r"--(\w+)", text))
    assert "out" in named
    if name == "fewshot_speed":
        own = defined["fewshot_resnet12"][1]  # with which it was imported
    assert named <= own
    assert callable(module.main)


@pytest.mark.slow
def test_smallest_size_of_cfa(tmp_path):
    file = tmp_path / "new" / "report.json"
    running.run_module("benchmarks.anomaly_speed", "--side=64", "--rounds=1", f"--out={file}")
    report = json.loads(file.read_text())
    assert {"step, naive", "step, fast with cached taps", "score, fast", "score, fast, only nearest"} <= report[
        "forms"
    ].keys()
    assert all(row["images_per_s"] > 0 for row in report["forms"].values())
    assert len({row["bank_mib"] for row in report["memory"]}) == 1
