"""Multiply-accumulates of traced programs against what can be counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from common.cost import count_macs, count_parameters


def test_matrix_products_and_batches_of_them():
    assert count_macs(jnp.dot, jnp.ones((3, 5)), jnp.ones((5, 7))) == 3 * 5 * 7
    assert count_macs(jnp.matmul, jnp.ones((2, 3, 5)), jnp.ones((2, 5, 7))) == 2 * 3 * 5 * 7


def test_convolutions_plain_and_depthwise():
    def convolve(x, kernel, groups):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=layout, feature_group_count=groups
        )

    x = jnp.ones((2, 9, 8, 6))
    plain = count_macs(lambda x, kernel: convolve(x, kernel, 1), x, jnp.ones((3, 3, 6, 4)))
    assert plain == 2 * 5 * 4 * 9 * 6 * 4
    depthwise = count_macs(lambda x, kernel: convolve(x, kernel, 6), x, jnp.ones((3, 3, 1, 6)))
    assert depthwise == 2 * 5 * 4 * 9 * 6


def test_programs_inside_programs():
    def loop(x):
        return jax.lax.scan(lambda carry, _: (jax.jit(jnp.dot)(carry, x), None), x, None, length=4)[0]

    assert count_macs(loop, jnp.ones((3, 3))) == 4 * 27


def test_parameters_of_arrays_and_shapes():
    assert (
        count_parameters({"a": np.ones((2, 3)), "b": [jax.ShapeDtypeStruct((4,), jnp.float32), 1.0 * np.ones(())]})
        == 11
    )
