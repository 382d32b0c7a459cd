"""Keeps XLA's fusions for CPUs that are made of YNNPACK kernels out of all programs: those of jaxlib 0.10.2 can crash,
and can give wrong numbers without a word.

Known cases: matrix products and sums of products fused with what surrounds them end in a segmentation fault
(https://github.com/jax-ml/jax/issues/39257; our joint step of multi-task training with `nn.Dense` heads); the sum of
squares of 32769 small matrix-vector products has a wrong element (https://github.com/jax-ml/jax/issues/39103). The flag
has no effect on other devices. To have these fusions: XLA_FLAGS="--xla_cpu_experimental_ynn_fusion_type=...".
"""

from collections.abc import MutableMapping

FLAG = "--xla_cpu_experimental_ynn_fusion_type"  # a list of kinds of fusions; every jaxlib from 0.10 to 0.12 knows it


def switch_off(environment: MutableMapping[str, str]) -> None:
    """Ask for no such fusion, unless the flag is set already; XLA reads its flags at the first computation."""
    flags = environment.get("XLA_FLAGS", "")
    if FLAG not in flags:
        environment["XLA_FLAGS"] = f"{flags} {FLAG}=".lstrip()
