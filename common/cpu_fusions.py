"""Keeps XLA's larger fusions of YNNPACK kernels out of programs for CPUs: those of jaxlib 0.10.2 can crash, and can
give wrong numbers without a word. Matrix products by themselves may stay.

Known cases: products and sums fused with what surrounds them end in a segmentation fault
(https://github.com/jax-ml/jax/issues/39257; our joint step of multi-task training); the sum of squares of 32769 small
matrix-vector products has a wrong element (https://github.com/jax-ml/jax/issues/39103). Every family asks for this when
it is imported, but `fewshot`: its steps would take 1.1 to 1.7 times as much CPU time; at the size of the embedded
default they agree with unfused ones to rounding. The flag has no effect on other devices. To choose for yourself, set
it in XLA_FLAGS (empty: nothing of the kind).
"""

import os
from collections.abc import MutableMapping

FLAG = "--xla_cpu_experimental_ynn_fusion_type"  # a list; jaxlib 0.10 to 0.12 know it and this value
KINDS = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"


def restrict(environment: MutableMapping[str, str] = os.environ) -> None:
    """Allow no other such fusions, unless the flag is set already; XLA reads its flags at the first computation."""
    flags = environment.get("XLA_FLAGS", "")
    if FLAG not in flags:
        environment["XLA_FLAGS"] = f"{flags} {FLAG}={KINDS}".lstrip()
