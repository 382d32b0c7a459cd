"""One finished run that several tests look at."""

from typing import Any

import pytest

from tests.common.toys.running import Run
from tests.distill import cli

FIELDS: dict[str, Any] = {"num_steps": 6, "teacher_steps": 6, "module_steps": 6, "save_every_steps": 2}


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Run:
    """MHGD from the command line, all three phases, without a break, on one device."""
    folder = tmp_path_factory.mktemp("distilled") / "run"
    out, _ = cli.run(*cli.flags("mhgd", folder, **FIELDS))
    return Run(folder, FIELDS, out)
