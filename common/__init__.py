"""What two or more methods need."""

import os

from common import cpu_fusions

cpu_fusions.restrict(os.environ)
