"""Views of the pretext tasks against the golden arrays, and what must hold of any."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from multitask import views
from tests.multitask import golden

ARRAYS = golden.load("views")
IMAGES = jnp.asarray(ARRAYS["images"])


def test_rotations():
    turned = views.rotate_quarter(IMAGES, jnp.asarray(ARRAYS["rot_k"]))
    np.testing.assert_array_equal(turned, ARRAYS["rot_out"])
    for k in range(4):
        np.testing.assert_array_equal(views.rotate_all(IMAGES)[:, k], np.rot90(ARRAYS["images"], k, axes=(1, 2)))


@pytest.mark.parametrize(("first", "second"), [(1, 1), (2, 3), (3, 3)])
def test_rotations_compose(first, second):
    def turn(images, k):
        return views.rotate_quarter(images, jnp.full(len(images), k))

    twice = turn(turn(IMAGES, first), second)
    np.testing.assert_array_equal(twice, turn(IMAGES, (first + second) % 4))


@pytest.mark.parametrize(("grid", "count"), [(3, 30), (2, 24)])
def test_jigsaw(grid, count):
    permutations = views.jigsaw_permutations(grid, count)
    np.testing.assert_array_equal(permutations, ARRAYS[f"perms{grid}"])
    assert len({tuple(row) for row in permutations}) == count
    drawn = jnp.asarray(permutations[ARRAYS[f"jig{grid}_idx"]])
    shuffled = views.jigsaw_shuffle(IMAGES, drawn, grid)
    np.testing.assert_array_equal(shuffled, ARRAYS[f"jig{grid}_out"])
    np.testing.assert_array_equal(views.jigsaw_shuffle(shuffled, jnp.argsort(drawn, axis=1), grid), IMAGES)


def test_jigsaw_permutations_are_far_apart():
    few = views.jigsaw_permutations(2, 6)
    distances = [int(np.sum(a != b)) for a, b in itertools.combinations(few, 2)]
    assert tuple(few[0]) == (0, 1, 2, 3)
    assert min(distances) >= 3  # a greedy choice that only avoided repetition would start with neighbours at 2


def test_holes_and_grey():
    mask = views.hole_mask(jnp.asarray(ARRAYS["hole_yx"]), int(ARRAYS["hole_size"]), 12, 12)
    np.testing.assert_array_equal(mask, ARRAYS["hole_mask"])
    np.testing.assert_array_equal(views.mask_hole(IMAGES, mask), ARRAYS["masked_out"])
    np.testing.assert_allclose(views.to_gray(IMAGES), ARRAYS["gray_out"], rtol=0, atol=1e-6)
