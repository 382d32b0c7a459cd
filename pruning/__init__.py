"""Filter pruning: EKG, and methods to compare with."""

from common import cpu_fusions

cpu_fusions.restrict()
