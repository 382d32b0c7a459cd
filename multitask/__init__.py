"""Multi-task unsupervised pre-training; its joint step is a program that XLA's larger CPU fusions crash in."""

import os

from common import cpu_fusions

cpu_fusions.restrict(os.environ)
