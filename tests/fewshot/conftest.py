"""One finished run that several tests look at, and a compiler in a hurry."""

import os
from pathlib import Path
from typing import Any

import jax
import pytest

from common import cpu_fusions
from tests.fewshot import cli

# Saved and evaluated at different steps, and long enough to be killed several times on the way.
FIELDS: dict[str, Any] = {"num_steps": 40, "save_every_steps": 3, "eval_every_steps": 8, "keep_best": 3}


def pytest_collection_modifyitems(items):
    """In 32 bits the numbers are those of few-shot's own programs: importing another family changes them."""
    if cpu_fusions.FLAG in os.environ.get("XLA_FLAGS", ""):
        apart = pytest.mark.skip(reason="other families are imported: run pytest tests/fewshot by itself")
        for item in items:
            if "float32" in item.name and Path(__file__).parent in item.path.parents:
                item.add_marker(apart)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> cli.Run:
    """CxGrad from the command line, without a break, on one device."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cli.LOG_COMPILES.items():
            patch.setenv(name, value)
        out, error = cli.run("cxgrad", folder, **FIELDS)
    return cli.Run(folder, FIELDS, out, cli.compiled(error))


@pytest.fixture
def little_optimization():
    """For programs that take longer to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
