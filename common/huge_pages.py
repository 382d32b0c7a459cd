"""Huge pages for the arrays of a step, on CPUs under Linux.

XLA asks the system for fresh memory at every step and gives it back after it. In pages of 4 kB the system spends a
third of a small vision transformer's step on handing them out; in pages of 2 MB next to nothing. glibc takes huge pages
if it is told so before the process starts, hence the restart. To do without: GLIBC_TUNABLES=glibc.malloc.hugetlb=0.
"""

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb"
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # "always [madvise] never": the choice is in brackets


def restart() -> None:
    """Start this process anew, as the same process with the same arguments, with huge pages, where that changes
    anything; to be called before the slow imports."""
    environment = changed(os.environ)
    if environment is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def changed(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The environment with huge pages asked for, or None where they are out of reach, in use, or declined."""
    tunables = environment.get("GLIBC_TUNABLES", "")
    if TUNABLE in tunables or platform.libc_ver()[0] != "glibc" or "[madvise]" not in _setting():
        return None
    return {**environment, "GLIBC_TUNABLES": f"{tunables}:{TUNABLE}=1".lstrip(":")}


def _setting() -> str:
    try:
        return _SETTING.read_text()
    except OSError:
        return ""
