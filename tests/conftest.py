"""Settings of every test: 8 virtual devices are asked for by subprocesses, not here."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # what common.huge_pages would restart processes for
# Rendered glyphs and compiled programs: shared by all processes that tests start, and kept for the next session.
os.environ.setdefault("LEANVISION_CACHE", str(Path(__file__).parents[1] / ".pytest_cache" / "leanvision"))

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_captured_constants_warn_bytes", 1 << 20)


@pytest.fixture
def float64():
    """Run one test with 64-bit arrays."""
    with jax.enable_x64(True):
        yield
