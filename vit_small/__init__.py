"""Vision transformers for small data: SPT and LSA."""

from common import cpu_fusions

cpu_fusions.restrict()
