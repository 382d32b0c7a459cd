"""Shuffled passes over the data, and the schedule that counts their steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from common import optim, sampler
from tests import golden_files


def run(steps, num_images, batch_size, **options):
    draw = functools.partial(
        sampler.batch_indices, jax.random.key(0), num_images=num_images, batch_size=batch_size, **options
    )
    return np.asarray(jax.jit(jax.vmap(draw))(jnp.arange(steps)))


def test_batches_equal_official():
    arrays = golden_files.load("vit_small", "augmentation")
    num_images, batch_size = arrays["sampler.n_and_batch"]
    random = np.random.RandomState(0)
    orders = jnp.asarray(np.stack([random.permutation(num_images) for _ in range(4)]))
    for step, official in enumerate(arrays["sampler.batches"]):
        start = int(step * batch_size)
        ours = sampler.read_passes(orders[start // num_images :], start % int(num_images), int(batch_size))
        np.testing.assert_array_equal(ours, official)
    assert len(arrays["sampler.batches"]) == sampler.steps_per_epoch(int(num_images), int(batch_size), passes=3)


def test_every_image_comes_once_a_pass():
    num_images, batch_size, passes = 10, 4, 3
    per_epoch = sampler.steps_per_epoch(num_images, batch_size, passes)
    assert per_epoch == 7
    epochs = run(2 * per_epoch, num_images, batch_size, passes=passes).reshape(2, -1)
    for epoch in epochs:
        for first in range(0, 2 * num_images, num_images):
            assert sorted(epoch[first : first + num_images]) == list(range(num_images))
        assert len(set(epoch[2 * num_images :])) == per_epoch * batch_size - 2 * num_images
    orders = {tuple(epoch[first : first + num_images]) for epoch in epochs for first in (0, num_images)}
    assert len(orders) == 4


def test_a_batch_may_span_several_passes():
    drawn = run(3, num_images=5, batch_size=12, passes=8).ravel()
    for first in range(0, 35, 5):
        assert sorted(drawn[first : first + 5]) == list(range(5))


def test_repeats_show_an_image_several_times_in_a_row():
    drawn = run(6, num_images=12, batch_size=6, passes=3, repeats=3).reshape(3, 4, 3)
    assert (drawn == drawn[:, :, :1]).all()
    assert all(len(set(one_pass[:, 0])) == 4 for one_pass in drawn)


@pytest.mark.parametrize("name", ["cifar", "svhn", "tiny_imagenet"])
def test_schedule_equals_official(name):
    arrays = golden_files.load("vit_small", "augmentation")
    num_images, epochs, warmup_epochs, batch_size, peak, per_epoch = arrays[f"schedule.{name}.config"]
    assert sampler.steps_per_epoch(int(num_images), int(batch_size), passes=3) == per_epoch
    schedule = optim.make_schedule(
        ConfigDict(
            {
                **{"schedule": "warmup_cosine", "learning_rate": float(peak)},
                **{"initial_learning_rate": 1e-6, "final_learning_rate": 1e-6},
                **{"warmup_steps": int(warmup_epochs * per_epoch), "total_steps": int(epochs * per_epoch)},
            }
        )
    )
    rates = jax.vmap(schedule)(jnp.asarray(arrays[f"schedule.{name}.step"]))
    np.testing.assert_allclose(rates, arrays[f"schedule.{name}.lr"], rtol=1e-5)
