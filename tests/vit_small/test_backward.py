"""The products of attention have the derivatives of any product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_small.backward import matmul


@pytest.mark.parametrize("shapes", [((2, 5, 3), (2, 3, 7)), ((2, 5, 7), (2, 7, 3))])  # the first factor is the smaller
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float64, 1e-14), (jnp.bfloat16, 2e-2)])
def test_derivatives_of_a_product(shapes, dtype, tolerance):
    with jax.enable_x64(dtype == jnp.float64):
        a, b = (jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate(shapes))
        product, pull = jax.vjp(matmul, a, b)
        expected, pull_expected = jax.vjp(jnp.matmul, a.astype(product.dtype), b.astype(product.dtype))
        assert product.dtype == jnp.promote_types(dtype, jnp.float32)
        np.testing.assert_allclose(product, expected, rtol=min(tolerance, 1e-6), atol=min(tolerance, 1e-6))
        cotangent = jax.random.normal(jax.random.key(2), product.shape, product.dtype)
        for ours, theirs, factor in zip(pull(cotangent), pull_expected(cotangent), (a, b), strict=True):
            assert ours.dtype == factor.dtype
            np.testing.assert_allclose(
                ours.astype(product.dtype), theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max()
            )
