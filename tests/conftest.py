"""Settings of every test: 8 virtual devices are asked for by subprocesses, not here."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # what common.huge_pages would restart processes for
# Rendered glyphs and compiled programs: shared by all processes that tests start, and kept for the next session.
os.environ.setdefault("LEANVISION_CACHE", str(Path(__file__).parents[1] / ".pytest_cache" / "leanvision"))

import gc

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_captured_constants_warn_bytes", 1 << 20)


@pytest.fixture(scope="module", autouse=True)
def programs_are_let_go():
    """Compiled programs of a module end with it.

    Each maps hundreds of pieces of memory. A process may have 65530 of them and dies beyond, which a worker would
    reach after some hundred tests.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def float64():
    """Run one test with 64-bit arrays."""
    with jax.enable_x64(True):
        yield
