"""CFA: anomaly localisation."""

from common import cpu_fusions

cpu_fusions.restrict()
