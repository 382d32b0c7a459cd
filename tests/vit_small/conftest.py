"""One finished run that several tests look at."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.vit_small import cli

FIELDS: dict[str, Any] = {"num_steps": 24, "save_every_steps": 3, "eval_every_steps": 8, "spt": True, "lsa": True}


class Run(NamedTuple):
    folder: Path
    fields: dict[str, Any]
    out: str


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Run:
    """SL-ViT from the command line, without a break, on one device."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    out, _ = cli.run("main", *cli.flags("vit", folder, **FIELDS))
    return Run(folder, FIELDS, out)
