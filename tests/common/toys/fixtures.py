"""Fixtures of the tests that run toys."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache as cache


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """Compile each toy once for all runs of a test module."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    _apply(settings)
    yield
    _apply(before)


def _apply(settings) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    cache.reset_cache()
