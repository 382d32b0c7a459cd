"""Linear CKA: the golden values, and what it is invariant to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot.similarity import gram, linear_cka, linear_cka_unbiased
from tests.fewshot import official

FORMS = {"linear_cka": linear_cka, "linear_cka_unbiased": linear_cka_unbiased}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-5)])
def test_equals_golden(dtype, tolerance):
    data = official.golden("representation_similarity")
    with jax.enable_x64(dtype is np.float64):
        before, after = (gram(jnp.asarray(data[f"features_{when}"], dtype)) for when in ("before", "after"))
        for name, cka in FORMS.items():
            assert official.error(cka(before, after), data[name]) < tolerance, name


def features(seed: int, n: int, d: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-2, 1e2))
def test_rotation_shift_and_scale_change_nothing(seed, scale):
    x, y = features(seed, 12, 6), features(seed + 1, 12, 5)
    rotation, _ = np.linalg.qr(features(seed + 2, 5, 5))
    moved = np.float32(scale) * (y @ rotation) + features(seed + 3, 1, 5)
    a, b, c = (gram(jnp.asarray(each)) for each in (x, y, moved))
    for cka in FORMS.values():
        np.testing.assert_allclose(cka(a, c), cka(a, b), atol=2e-4)
        np.testing.assert_allclose(cka(b, c), 1, atol=2e-4)


def test_maps_are_flattened_per_image():
    maps = jnp.asarray(features(0, 8, 3 * 3 * 2).reshape(8, 3, 3, 2))
    np.testing.assert_allclose(gram(maps), gram(maps.reshape(8, -1)), rtol=1e-6)


def test_independent_wide_features_are_alike_for_the_biased_form_alone():
    pairs = [(features(2 * seed, 75, 1200), features(2 * seed + 1, 75, 1200)) for seed in range(20)]
    values = {
        name: np.mean([cka(gram(jnp.asarray(x)), gram(jnp.asarray(y))) for x, y in pairs])
        for name, cka in FORMS.items()
    }
    assert values["linear_cka"] > 0.8
    assert abs(values["linear_cka_unbiased"]) < 0.02
