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


@pytest.fixture(params=["svd", "eigen"])
def backend(request):
    """Of the decomposition; eigenvectors in 64 bits, because a Gram matrix has the square of the condition."""
    if request.param == "eigen":
        request.getfixturevalue("float64")
    return request.param
