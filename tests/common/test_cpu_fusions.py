"""The flag that keeps faulty kernels out of programs."""

import jax
import jax.numpy as jnp
import numpy as np

from common import cpu_fusions


def test_flag_is_added_once_and_can_be_set_by_hand():
    environment = {}
    cpu_fusions.switch_off(environment)
    assert environment == {"XLA_FLAGS": f"{cpu_fusions.FLAG}="}
    environment = {"XLA_FLAGS": "--xla_other=8"}
    for _ in range(2):
        cpu_fusions.switch_off(environment)
        assert environment["XLA_FLAGS"] == f"--xla_other=8 {cpu_fusions.FLAG}="
    environment = {"XLA_FLAGS": f"{cpu_fusions.FLAG}=LIBRARY_FUSION_TYPE_DOT"}
    cpu_fusions.switch_off(environment)
    assert environment["XLA_FLAGS"] == f"{cpu_fusions.FLAG}=LIBRARY_FUSION_TYPE_DOT"


def test_programs_are_compiled_without_them():
    """A sum of products whose last element jaxlib 0.10.2 gets wrong with them."""
    rows = jnp.arange(32769.0)[:, None] * jnp.array([[1.0, 0.0, 0.0]])

    def squares(rows):
        return jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(rows)

    compiled = jax.jit(squares).lower(rows).compile()
    assert "ynn" not in compiled.as_text()
    np.testing.assert_array_equal(compiled(rows), np.arange(32769, dtype=np.float32) ** 2)
