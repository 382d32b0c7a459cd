"""AutoAugment: the official code's outputs and policies, Pillow image by image, and how often things happen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from benchmarks.pillow_augmentation import operate
from tests.vit_small.official import golden
from vit_small.augmentation import autoaugment, policies
from vit_small.augmentation.operations import apply_operations
from vit_small.augmentation.policies import INDEX, LEVELS, OPERATIONS, POLICIES
from vit_small.augmentation.tone import blend

OFFICIAL = OPERATIONS[:-1]
NEVER_EXACT = ("shearX", "shearY", "autocontrast")  # Pillow's float64 may fall just below a whole number
PLAIN = ("autocontrast", "equalize", "invert")  # no level

run = jax.jit(apply_operations)


def apply(images, operation, level, sign):
    """uint8 [B, h, w, c] to the same; numbers of operations, levels and signs [B]."""
    numbers = (np.asarray(column, np.int32) for column in (operation, level, sign))
    return np.moveaxis(np.asarray(run(np.moveaxis(images, -1, 0), *numbers)), 0, -1)


def cases():
    """Every operation at every level in both directions, [n, 3]."""
    return np.array([(op, level, sign) for op in range(len(OFFICIAL)) for level in range(LEVELS) for sign in (1, -1)])


def photograph(random, height, width, channels):
    """Something smooth with noise, of few or many levels, so that histograms differ from flat."""
    waves = np.sin(np.linspace(0, random.uniform(1, 9), height))[:, None, None]
    waves = (
        waves * np.cos(np.linspace(0, random.uniform(1, 9), width))[None, :, None] * random.uniform(10, 100, channels)
    )
    noise = random.normal(size=(height, width, channels)) * random.uniform(0, 30)
    return np.clip(waves + noise + random.uniform(60, 200), 0, 255).astype(np.uint8)


def test_operations_equal_official():
    arrays = golden("augmentation")
    cases = arrays["autoaugment.case_op_level_sign"]
    images = np.repeat(arrays["autoaugment.x"][None], len(cases), axis=0)
    difference = np.abs(apply(images, *cases.T).astype(int) - arrays["autoaugment.case_output"])
    assert difference.max() <= 1
    shears = np.isin(cases[:, 0], [INDEX["shearX"], INDEX["shearY"]])
    assert difference[~shears].max() == 0
    assert (difference > 0).mean() < 1e-3


def test_magnitudes_and_policies_equal_official():
    arrays = golden("augmentation")
    assert tuple(arrays["autoaugment.operations"]) == OFFICIAL
    np.testing.assert_array_equal(policies.MAGNITUDES[: len(OFFICIAL)], arrays["autoaugment.magnitudes"])
    for name in POLICIES:
        probabilities, operations, levels = policies.policy_table(name)
        official = arrays[f"autoaugment.policy.{name}"]
        np.testing.assert_allclose(probabilities, official[:, [0, 3]], rtol=1e-7)
        np.testing.assert_array_equal(operations, official[:, [1, 4]])
        np.testing.assert_array_equal(levels, official[:, [2, 5]])


@pytest.mark.parametrize(("height", "width", "channels"), [(32, 32, 3), (20, 31, 3), (28, 28, 1)])
def test_operations_equal_pillow(height, width, channels):
    random = np.random.default_rng(height)
    numbers = cases()
    images = np.stack([photograph(random, height, width, channels) for _ in numbers])
    images[::7] = random.integers(0, 256, images[::7].shape)
    ours, differing = apply(images, *numbers.T), {}
    for image, result, (op, level, sign) in zip(images, ours, numbers, strict=True):
        pillow = np.asarray(operate(Image.fromarray(image.squeeze()), OPERATIONS[op], level, sign)).reshape(image.shape)
        difference = np.abs(pillow.astype(int) - result)
        assert difference.max() <= (1 if OPERATIONS[op] in NEVER_EXACT else 0), (OPERATIONS[op], level, sign)
        differing.setdefault(OPERATIONS[op], []).append((difference > 0).mean())
    assert max(np.mean(shares) for shares in differing.values()) < 0.02


def test_blend_equals_pillow_for_every_pair_of_levels_and_factor():
    level = np.arange(256, dtype=np.uint8)
    other, image = (grid.astype(np.uint8) for grid in np.meshgrid(level, level, indexing="ij"))
    compiled = jax.jit(blend)
    for strength in policies.MAGNITUDES[INDEX["contrast"]]:
        for factor in (1 + strength, 1 - strength):
            pillow = np.asarray(Image.blend(Image.fromarray(other), Image.fromarray(image), factor))
            ours = compiled(other.astype(np.int32), image.astype(np.int32), np.full((1, 1), factor, np.float32))
            np.testing.assert_array_equal(ours, pillow)


def test_magnitude_zero_changes_nothing():
    random = np.random.default_rng(0)
    names = [name for name in OFFICIAL if name not in PLAIN] + ["identity"]
    images = random.integers(0, 256, (len(names), 16, 24, 3)).astype(np.uint8)
    operation = np.array([INDEX[name] for name in names])
    zero = np.zeros(len(names), int)
    np.testing.assert_array_equal(apply(images, operation, zero, zero + 1), images)


def test_images_of_one_level_stay_where_they_have_no_contrast():
    flat = np.full((2, 8, 8, 3), 77, np.uint8)
    operation = [INDEX["autocontrast"], INDEX["equalize"]]
    np.testing.assert_array_equal(apply(flat, operation, [5, 5], [1, 1]), flat)


def test_inverting_twice_and_turning_back_lose_nothing_but_the_border():
    images = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    operation, level = [INDEX["invert"], INDEX["translateX"]], [0, 3]
    back = apply(apply(images, operation, level, [1, 1]), operation, level, [1, -1])
    np.testing.assert_array_equal(back[0], images[0])
    moved = int(np.floor(0.5 + policies.MAGNITUDES[INDEX["translateX"], 3] * 16))
    assert moved == 2
    np.testing.assert_array_equal(back[1, :, moved:], images[1, :, moved:])
    np.testing.assert_array_equal(back[1, :, :moved], 128)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_operations_happen_as_often_as_the_policy_says(policy):
    draws = 20_000
    keys = jax.random.split(jax.random.key(3), draws)
    choice = jax.jit(autoaugment.draw_choice, static_argnums=(1, 2))(keys, policy, False)
    probabilities, operations, levels = policies.policy_table(policy)
    drawn = np.asarray(choice.operation)
    for turn in range(2):
        for index in range(len(OFFICIAL)):
            expected = probabilities[operations[:, turn] == index, turn].sum() / len(operations)
            spread = np.sqrt(max(expected * (1 - expected), 1e-12) / draws)
            assert abs((drawn[:, turn] == index).mean() - expected) <= 5 * spread, (turn, OPERATIONS[index])
        happened = drawn[:, turn] != INDEX["identity"]
        pairs = set(zip(drawn[happened, turn], np.asarray(choice.level)[happened, turn], strict=True))
        possible = probabilities[:, turn] > 0
        assert pairs == set(zip(operations[possible, turn], levels[possible, turn], strict=True))
    signs = np.asarray(choice.sign)
    turned = drawn == INDEX["rotate"]
    assert (signs[turned] == 1).all()
    assert abs((signs[~turned] == 1).mean() - 0.5) < 5 * 0.5 / np.sqrt((~turned).sum())
    both_ways = autoaugment.draw_choice(keys, policy, True)
    assert set(np.unique(both_ways.sign[np.asarray(both_ways.operation) == INDEX["rotate"]])) == {-1, 1}


def test_a_choice_is_its_two_operations_in_order():
    images = jnp.asarray(np.random.default_rng(2).integers(0, 256, (3, 12, 12, 3)).astype(np.uint8))
    first, second = np.array([4, 12, 0]), np.array([12, 4, 5])
    level, sign = np.array([7, 8, 9]), np.array([1, 1, -1])
    choice = autoaugment.Choice(
        *(jnp.asarray(np.stack(pair, 1)) for pair in ((first, second), (level,) * 2, (sign,) * 2))
    )
    expected = apply(apply(np.asarray(images), first, level, sign), second, level, sign)
    np.testing.assert_array_equal(autoaugment.apply_choice(images, choice), expected)
