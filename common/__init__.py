"""What two or more methods need."""

import os

from common import cpu_fusions

cpu_fusions.switch_off(os.environ)
