"""The pretext tasks: each file here with a `NAMES` is found by itself, so that a new task is one new file.

A file has NAMES (the tasks that it makes), `make(name, context) -> Task` and `check(config)`, which raises UserError.
"""

import importlib
import pkgutil
from types import ModuleType

from ml_collections import ConfigDict

from multitask.tasks.task import Context, Task

__all__ = ["Context", "Task", "check", "make", "names"]


def _modules() -> dict[str, ModuleType]:
    found = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return {name: module for module in found for name in getattr(module, "NAMES", ())}


def names() -> tuple[str, ...]:
    """All tasks that there are."""
    return tuple(sorted(_modules()))


def make(name: str, context: Context) -> Task:
    """One of `names()`."""
    return _modules()[name].make(name, context)


def check(name: str, config: ConfigDict) -> None:
    """Raise UserError for fields with which the task cannot work."""
    _modules()[name].check(config)
