"""One finished run that several tests look at."""

from typing import Any

import pytest

from tests.common.toys.running import Run
from tests.vit_small import cli

FIELDS: dict[str, Any] = {"num_steps": 24, "save_every_steps": 3, "eval_every_steps": 8, "spt": True, "lsa": True}


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Run:
    """SL-ViT from the command line, without a break, on one device."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    out, _ = cli.run("main", *cli.flags("vit", folder, **FIELDS))
    return Run(folder, FIELDS, out)
