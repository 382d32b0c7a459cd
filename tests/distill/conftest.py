"""One finished run that several tests look at."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.distill import cli

FIELDS: dict[str, Any] = {"num_steps": 6, "teacher_steps": 6, "module_steps": 6, "save_every_steps": 2}


class Run(NamedTuple):
    folder: Path
    fields: dict[str, Any]
    out: str


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Run:
    """MHGD from the command line, all three phases, without a break, on one device."""
    folder = tmp_path_factory.mktemp("distilled") / "run"
    out, _ = cli.run(*cli.flags("mhgd", folder, **FIELDS))
    return Run(folder, FIELDS, out)
