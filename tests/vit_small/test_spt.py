"""Shifted patch tokenisation against the official implementation, in both forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vit_small import official
from vit_small import spt

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def forms(case, patch):
    """{form: function of (images, weights)}."""
    return {
        "reference": functools.partial(spt.tokenize, patch=patch, shift=patch // 2),
        "fused": functools.partial(spt.tokenize_fused, patch=patch),
    }


def weights_of(arrays, case, dtype):
    kernel = arrays[f"{case}.w.merging.2.weight"].T
    return spt.Weights(
        *(jnp.asarray(arrays[f"{case}.w.merging.1.{name}"], dtype) for name in ("weight", "bias")),
        jnp.asarray(kernel, dtype),
        jnp.asarray(arrays[f"{case}.w.merging.2.bias"], dtype),
    )


def grid_of(tokens):
    """Tokens [B, n * n, C] as an image."""
    side = round(tokens.shape[1] ** 0.5)
    return tokens.reshape(tokens.shape[0], side, side, -1)


@pytest.mark.parametrize(("case", "patch"), [("p4", 4), ("p2", 2)])
def test_shifted_views(case, patch):
    arrays = official.golden("spt")
    images = jnp.asarray(arrays[f"{case}.x"].transpose(0, 2, 3, 1), jnp.float32)
    for directions, suffix in (("diagonal4", ""), ("cardinal4", "_cardinal4"), ("all8", "_all8")):
        views = spt.shifted_views(images, patch // 2, directions)
        expected = arrays[f"{case}.shifted{suffix}"].transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(views, expected.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", ["reference", "fused"])
@pytest.mark.parametrize(("case", "patch"), [("p4", 4), ("p2", 2), ("pool", 2), ("pool_cls", 2)])
def test_tokens_and_gradients(case, patch, form, dtype):
    with jax.enable_x64(dtype == "float64"):
        arrays, weights = official.golden("spt"), weights_of(official.golden("spt"), case, dtype)
        x, cotangent = (jnp.asarray(arrays[f"{case}.{name}"], dtype) for name in ("x", "cotangent"))
        classes = case == "pool_cls"
        names = ("weight", "bias") if classes else ()
        class_weights = [jnp.asarray(arrays[f"{case}.w.class_linear.{name}"], dtype) for name in names]

        def tokens(x, weights, class_weights):
            first = x[:, :1] @ class_weights[0].T + class_weights[1][None, None] if classes else x[:, :0]
            images = grid_of(x[:, classes:]) if case.startswith("pool") else x.transpose(0, 2, 3, 1)
            rest = forms(case, patch)[form](images, weights)
            return jnp.concatenate([first, rest], axis=1) if classes else rest

        @official.jit
        def outputs_and_gradients(x, weights, class_weights):
            out, pull = jax.vjp(tokens, x, weights, class_weights)
            return out, pull(cotangent)

        out, (grad_x, grad, grad_class) = outputs_and_gradients(x, weights, class_weights)
        expected = {
            "tokens": (out, arrays[f"{case}.tokens"]),
            "x": (grad_x, arrays[f"{case}.grad_x"]),
            "scale": (grad.scale, arrays[f"{case}.grad.merging.1.weight"]),
            "offset": (grad.offset, arrays[f"{case}.grad.merging.1.bias"]),
            "kernel": (grad.kernel, arrays[f"{case}.grad.merging.2.weight"].T),
            "bias": (grad.bias, arrays[f"{case}.grad.merging.2.bias"]),
        }
        for name, leaf in zip(("weight", "bias"), grad_class, strict=False):
            expected[f"class {name}"] = (leaf, arrays[f"{case}.grad.class_linear.{name}"])
        for name, (ours, theirs) in expected.items():
            assert ours.dtype == dtype
            np.testing.assert_allclose(ours, theirs, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype], err_msg=name)


@pytest.mark.parametrize(("patch", "height", "width", "channels"), [(2, 6, 10, 5), (4, 12, 8, 3), (8, 16, 24, 1)])
def test_both_forms_are_one_function(patch, height, width, channels):
    """On rectangles too, and on images far from mean 0, where squares would cancel."""
    random = np.random.default_rng(patch)
    images = jnp.asarray(30.0 + random.standard_normal((2, height, width, channels)), jnp.float32)
    features = 5 * patch**2 * channels
    shapes = ((features,), (features,), (features, 6), (6,))
    weights = spt.Weights(*(jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes))
    plain = spt.tokenize(images, weights, patch, patch // 2)
    fused = spt.tokenize_fused(images, weights, patch)
    np.testing.assert_allclose(fused, plain, atol=2e-5 * np.abs(plain).max())


def test_a_moved_image_moves_its_inner_tokens():
    random = np.random.default_rng(0)
    images = jnp.asarray(random.standard_normal((1, 20, 20, 3)), jnp.float32)
    moved = jnp.roll(images, (4, 4), (1, 2))
    shapes = ((240,), (240,), (240, 5), (5,))
    weights = spt.Weights(*(jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes))
    before, after = (grid_of(spt.tokenize(x, weights, 4, 2)) for x in (images, moved))
    np.testing.assert_allclose(after[:, 2:4, 2:4], before[:, 1:3, 1:3], atol=1e-5)
    assert np.abs(after - before).max() > 0.1


def test_what_cannot_be_tokenised():
    with pytest.raises(ValueError, match=r"patch of 1 shifted by 0\.5 of its side does not move"):
        spt.shift_of(1)
    assert spt.shift_of(5) == 2
    with pytest.raises(ValueError, match="patches of 4 do not divide 10 x 8"):
        spt.patchify(jnp.zeros((1, 10, 8, 3)), 4)
    odd = spt.Weights(jnp.ones(135), jnp.zeros(135), jnp.ones((135, 2)), jnp.zeros(2))
    with pytest.raises(ValueError, match="needs an even patch, but it is 3"):
        spt.tokenize_fused(jnp.zeros((1, 6, 6, 3)), odd, 3)
