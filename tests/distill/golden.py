"""The golden files of the official implementations, and comparison relative to the largest entry of each array."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax import lax

FOLDER = Path(__file__).parents[1] / "golden" / "distill"
VALUES, GRADIENTS, MODULE_GRADIENTS = 1e-5, 1e-4, 3e-4


def load(name):
    """All arrays of a file, in the precision of the test (float32, or float64 under the fixture)."""
    with np.load(FOLDER / f"{name}.npz") as stored:
        return {key: jnp.asarray(stored[key], jnp.result_type(float)) for key in stored.files}


def close(found, expected, tolerance=VALUES, name=""):
    """Raise unless shapes agree and all differences are within tolerance times the largest entry."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, (name, found.shape, expected.shape)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * largest, err_msg=name)


def flip(vectors, stored):
    """Columns of `vectors` with the signs of the stored ones."""
    return vectors * lax.stop_gradient(jnp.sign(jnp.sum(vectors * stored, axis=1, keepdims=True)))
