"""Data sets: `load(name, task=..., ...)` gives splits in memory; `names()` lists what can be asked for."""

from common.data.dataset import Dataset, Split
from common.data.registry import load, names

__all__ = ["Dataset", "Split", "load", "names"]
