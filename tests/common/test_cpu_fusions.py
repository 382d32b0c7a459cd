"""The flag that keeps faulty fusions out of programs."""

import pytest

from common import cpu_fusions
from tests.common.toys import running


def test_flag_is_added_once_and_can_be_set_by_hand():
    ours = f"{cpu_fusions.FLAG}={cpu_fusions.KINDS}"
    environment = {}
    cpu_fusions.restrict(environment)
    assert environment == {"XLA_FLAGS": ours}
    environment = {"XLA_FLAGS": "--xla_other=8"}
    for _ in range(2):
        cpu_fusions.restrict(environment)
        assert environment["XLA_FLAGS"] == f"--xla_other=8 {ours}"
    environment = {"XLA_FLAGS": f"{cpu_fusions.FLAG}="}
    cpu_fusions.restrict(environment)
    assert environment["XLA_FLAGS"] == f"{cpu_fusions.FLAG}="


PROGRAM = """
import importlib, sys
importlib.import_module(sys.argv[1])
import jax, jax.numpy as jnp
rows = jnp.arange(32769.0)[:, None] * jnp.array([[1.0, 0.0, 0.0]])
squares = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
print(float(squares[-1]))
"""


@pytest.mark.parametrize("family", ["anomaly", "distill", "fer", "multitask", "pruning", "vit_small"])
def test_a_sum_of_products_is_right(family):
    """With all fusions, jaxlib 0.10.2 gets its last element wrong."""
    assert float(running.run_program(PROGRAM, family)) == 32768**2
