"""Facial expression recognition that does not depend on who the person is: ELIM."""

from common import cpu_fusions

cpu_fusions.restrict()
