"""What holds of a run of any of the ten methods: its programs are compiled once, none of them can wait forever for its
own threads, a NaN stops it, the size of evaluation batches changes no result, and a run that is stopped and goes on in
another process ends as one without a break. One short run of each serves all of these.
"""

import collections
import contextlib
import importlib
import json
import logging
import math
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from common import cpu_fusions, loop, phases
from common.experiment import Phase
from common.step import Stepper
from tests.common.toys import running
from tests.common.toys.fixtures import compilation_cache  # noqa: F401
from tests.trust.test_command_line import METHODS

cpu_fusions.restrict()  # as most methods do when they are imported, which may be too late after a run of another
pytestmark = pytest.mark.slow

SOME = {"num_steps": 4, "eval_every_steps": 2, "save_every_steps": 2}
OTHER_WIDTHS = {"student.width": 0.125}  # than the teacher's, so that the programs of the two are told apart
FIELDS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("sskd_svd", "mhgd", "iepkt"), OTHER_WIDTHS),
    "cfa": {"textures.train_images": 16, "batch_size": 8, "num_epochs": 2, "eval_batch_size": 8},
    "elim": SOME,
    "tte": {"transfers": ("classification", "detection")},
}
# Programs of so many arrays are steps and evaluations; those of fewer may be single operations.
ARRAYS = 6
BATCH = {"cxgrad": "episodes_per_batch", "tapl": "episodes_per_batch"}
LAPACK = re.compile(r"custom_call @(lapack_\w+)\(.*num_batch_dims = \"(\d+)\".* : \(tensor<([\dx]+)x[a-z]")
# Results that are times, or that the official code computes batch by batch.
NOT_THE_SAME = re.compile("seconds|minutes|faster|milliseconds|latency|official_")


class Run(NamedTuple):
    method: str
    stages: list[Phase]
    config: ConfigDict
    folder: Path
    programs: dict[str, collections.Counter]  # phase -> what was compiled in it, and how often
    texts: Path  # a file of each program's StableHLO


def shortened(method: str) -> dict[str, Any]:
    """What these runs change in the smoke variant."""
    return {"tensorboard": False, **FIELDS.get(method, {})}


def smoke(method: str, **fields: Any) -> tuple[list[Phase], ConfigDict]:
    file = METHODS[method].removesuffix(".py").replace("/", ".")
    config = importlib.import_module(file).get_config("smoke")
    config.update_from_flattened_dict(shortened(method) | fields)
    experiment = importlib.import_module(f"{file.partition('.')[0]}.experiment")
    phases_of = getattr(experiment, "phases", None)
    config.lock()
    return phases.plan(config, None if phases_of else experiment.build, phases_of), config


class Compiled(logging.Handler):
    """Counts compiled programs by name and types, for each phase."""

    def __init__(self):
        super().__init__()
        self.phase, self.found = "", collections.defaultdict(collections.Counter)

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith("Compiling jit(") and text.count("ShapedArray(") >= ARRAYS:
            self.found[self.phase][text.partition(" Argument mapping")[0]] += 1


@pytest.fixture(scope="module", autouse=True)
def little_optimisation():
    """By the compiler: these tests compile more than they compute."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", params=METHODS)
def run(request, tmp_path_factory):
    """A finished run of the method."""
    stages, config = smoke(request.param)
    folder, compiled, log = tmp_path_factory.mktemp(request.param) / "run", Compiled(), logging.getLogger("jax")
    texts = folder.parent / "programs"
    with pytest.MonkeyPatch.context() as patch, dumped(texts):
        patch.setattr(log, "propagate", False)
        original = loop.fit

        def fit(experiment, config, folder):
            compiled.phase = folder.name
            return original(experiment, config, folder)

        patch.setattr(loop, "fit", fit)
        log.addHandler(compiled)
        with jax.log_compiles():
            phases.train(stages, config, folder)
        log.removeHandler(compiled)
    return Run(request.param, stages, config, folder, dict(compiled.found), texts)


@contextlib.contextmanager
def dumped(folder: Path):
    """Every program that is lowered meanwhile leaves its text in `folder`."""
    jax.config.update("jax_dump_ir_to", str(folder))
    try:
        yield
    finally:
        jax.config.update("jax_dump_ir_to", "")


def test_programs_are_compiled_once(run):
    for phase, programs in run.programs.items():
        assert [text for text, times in programs.items() if times > 1] == [], phase
    found = " ".join(text for programs in run.programs.values() for text in programs)
    assert "jit(train_step)" in found
    assert "jit(evaluate)" in found or "jit(measure)" in found


def test_no_batch_of_matrices_goes_to_lapack(run):
    """See `parallel.map_examples`."""
    texts = [file.read_text() for file in run.texts.glob("*.mlir")]
    assert any("jit_train_step" in text for text in texts)
    for name, axes, shape in LAPACK.findall("\n".join(texts)):
        batch = [int(size) for size in shape.split("x")][: int(axes)]
        assert math.prod(batch) == 1, (name, shape)


def test_size_of_evaluation_batches_changes_nothing(run):
    field = BATCH.get(run.method, "eval_batch_size")
    found = []
    for size in (7, 10_000):  # the last one is padded; all in one
        stages, config = smoke(run.method, **{field: size})
        found.append(phases.evaluate(stages, config, run.folder, (field,)))
    assert found[0].keys() == found[1].keys()
    kept = [name for name in found[0] if not NOT_THE_SAME.search(name)]
    assert kept
    one, other = ({name: results[name] for name in kept} for results in found)
    assert one == pytest.approx(other, rel=1e-5)


def test_stopped_and_resumed_in_another_process_equals_straight(run, tmp_path, monkeypatch):
    folder, file = tmp_path / "run", METHODS[run.method]
    running.stop_after(monkeypatch, 3)
    phases.train(run.stages, run.config, folder)
    flags = running.flags(f"{file}:smoke", folder, shortened(run.method))
    cache = f"--compilation_cache={jax.config.jax_compilation_cache_dir}"
    command = [sys.executable, "-m", f"{file.partition('/')[0]}.main", *flags, cache]
    settings = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}
    out, _ = running.finish(running.open_process(command, **settings))
    assert "resumed at step 3" in out
    ended = [path.parent.relative_to(run.folder) for path in run.folder.rglob("metrics.jsonl")]
    assert ended
    for phase in ended:
        assert running.metrics(run.folder / phase) == running.metrics(folder / phase)
        running.assert_same_arrays(running.state_on_disk(run.folder / phase), running.state_on_disk(folder / phase))
        one, other = (results(path / phase) for path in (run.folder, folder))
        assert one == other


def results(folder: Path) -> dict[str, float]:
    found = json.loads((folder / "results.json").read_text())
    return {name: value for name, value in found.items() if not NOT_THE_SAME.search(name)}


def test_nan_stops_the_run(run, tmp_path, monkeypatch):
    """Planted into the third step's parameters: images are whole numbers."""
    original = Stepper.__call__

    def call(self, state, accumulated, before):
        if before == 2:
            leaves, structure = jax.tree.flatten(state.params)
            place = next(i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating))
            leaves[place] = jax.device_put(jnp.full_like(leaves[place], jnp.nan), leaves[place].sharding)
            state = state.replace(params=jax.tree.unflatten(structure, leaves))
        return original(self, state, accumulated, before)

    monkeypatch.setattr(Stepper, "__call__", call)
    with pytest.raises(loop.NonFiniteError, match=r"the parameter \['.*became non-finite at step [34]"):
        phases.train(run.stages, run.config, tmp_path / "run")
