"""Multi-task unsupervised pre-training: TTE."""

from common import cpu_fusions

cpu_fusions.restrict()
