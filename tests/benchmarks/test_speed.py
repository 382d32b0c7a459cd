"""The speed benchmarks have the flags that their texts and the Makefile name; cheap ones run at their smallest size."""

import importlib
import json
import re

import pytest
from absl import flags

from tests.common.toys import running

NAMES = [*sorted(path.stem for path in (running.ROOT / "benchmarks").glob("*_speed.py")), "fewshot_resnet12"]
SMALLEST = {
    "anomaly_speed": ["--side=64", "--rounds=1"],
    "fewshot_resnet12": ["--image_sizes=8", "--filters=2", "--inner_steps=1", "--repeats=1"],
    "pruning_speed": ["--quick", "--rounds=1"],
}


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
@pytest.mark.parametrize("name", SMALLEST)
def test_smallest_size(name, tmp_path):
    out, _ = running.run_module(f"benchmarks.{name}", *SMALLEST[name], f"--out={tmp_path / 'new' / 'report.json'}")
    assert out
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert report["machine"]["cores"] > 0
    assert len(report) > 1
