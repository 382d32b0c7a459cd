"""The golden files of the family."""

from functools import partial

from tests import golden_files

load = partial(golden_files.load, "multitask")
