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

from tests import golden_files

RECORDER: pytest.StashKey[golden_files.Recorder | None] = pytest.StashKey()

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


@pytest.fixture
def compiled(caplog):
    """A function that tells the names of all programs compiled so far, such as "jit(train_step)"."""

    def names():
        texts = [record.getMessage() for record in caplog.records]
        return [text.split()[4] for text in texts if text.startswith("Finished XLA compilation of")]

    jax.config.update("jax_enable_compilation_cache", False)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        yield names
    jax.config.update("jax_enable_compilation_cache", True)


def pytest_addoption(parser):
    parser.addoption("--record-golden", action="store_true", help="write which test reads which golden array")


def pytest_configure(config):
    config.stash[RECORDER] = golden_files.Recorder() if config.getoption("--record-golden") else None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Arrays may also be read when a module is imported."""
    report = yield
    if recorder := collector.config.stash[RECORDER]:
        recorder.note(collector.nodeid)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """A test that passes must have read the golden arrays that the record says it reads."""
    result = yield
    module, test = pyfuncitem.nodeid.partition("::")[0], pyfuncitem.nodeid
    if recorder := pyfuncitem.config.stash[RECORDER]:
        recorder.note(test)
    else:
        unread = sorted((golden_files.claims(module) | golden_files.claims(test)) - golden_files.READ)
        assert not unread, f"recorded in {golden_files.RECORD.name} as read here, but not read: {unread}"
    return result


def pytest_sessionfinish(session):
    if recorder := session.config.stash[RECORDER]:
        if hasattr(session.config, "workeroutput"):  # of xdist: the process that started the workers writes
            session.config.workeroutput["golden"] = recorder.told()
        else:
            recorder.write()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    if recorder := node.config.stash[RECORDER]:
        recorder.add(getattr(node, "workeroutput", {}).get("golden", {}))
