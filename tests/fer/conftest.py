"""One finished run that several tests look at."""

from typing import Any

import pytest

from tests.common.toys.running import Run
from tests.fer import cli

FIELDS: dict[str, Any] = {"num_steps": 12, "save_every_steps": 3, "eval_every_steps": 6, "official_metrics": True}


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Run:
    """ELIM from the command line, without a break, on one device."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    out, _ = cli.run("main", *cli.flags("elim", folder, **FIELDS))
    return Run(folder, FIELDS, out)
