"""One finished run that several tests look at."""

import pytest

from tests.anomaly import cli


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(folder, standard output) of the smoke variant from the command line, on one device."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    out, _ = cli.run(folder)
    return folder, out
