"""Episodes: the official sampler draw by draw, and an audit of both samplers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from common.errors import UserError
from fewshot import episodes
from tests.fewshot import official

WAYS, SHOTS, QUERIES = 5, 2, 4
SIZES = np.random.default_rng(0).integers(SHOTS + QUERIES, 30, size=24)
OFFSETS = np.cumsum(SIZES) - SIZES
CLASS_OF = np.repeat(np.arange(len(SIZES)), SIZES)


@pytest.mark.parametrize("name", ["episode_sampler", "episode_sampler_omniglot_sized"])
def test_official_sampler_draws_the_official_episodes(name):
    data = official.golden(name)
    ways, shots, queries = data["classes"].shape[1], data["support_index"].shape[2], data["target_index"].shape[2]
    assert list(data["class_names"]) == sorted(data["class_names"])
    assert episodes.official_base_seed(0) == data["official_base_seed_from_0"]
    for i, seed in enumerate(data["seeds"]):
        classes, support, query = episodes.official_episode(int(seed), data["class_sizes"], ways, shots, queries)
        np.testing.assert_array_equal(classes, data["classes"][i])
        np.testing.assert_array_equal(support, data["support_index"][i])
        np.testing.assert_array_equal(query, data["target_index"][i])


def test_official_episodes_continue_where_a_run_stopped():
    whole = episodes.official_episodes(7, 0, 10, SIZES, WAYS, SHOTS, QUERIES)
    rest = episodes.official_episodes(7, 6, 4, SIZES, WAYS, SHOTS, QUERIES)
    assert whole.dtype == np.int32
    np.testing.assert_array_equal(whole[6:], rest)
    classes, support, query = episodes.official_episode(9, SIZES, WAYS, SHOTS, QUERIES)
    np.testing.assert_array_equal(whole[2, :, :SHOTS], OFFSETS[classes, None] + support)
    np.testing.assert_array_equal(whole[2, :, SHOTS:], OFFSETS[classes, None] + query)


def sample(seed, num_tasks=1000):
    drawn = episodes.sample_episodes(
        jax.random.key(seed),
        jnp.asarray(OFFSETS),
        jnp.asarray(SIZES),
        num_tasks=num_tasks,
        ways=WAYS,
        shots=SHOTS,
        queries=QUERIES,
        max_class_size=int(SIZES.max()),
    )
    return np.asarray(drawn)


def device_episodes():
    return sample(0)


def official_episodes():
    return episodes.official_episodes(985773, 0, 1000, SIZES, WAYS, SHOTS, QUERIES)


@pytest.mark.parametrize("draw", [device_episodes, official_episodes])
def test_audit_of_a_thousand_episodes(draw):
    drawn = draw()
    assert drawn.shape == (1000, WAYS, SHOTS + QUERIES)
    assert drawn.dtype == np.int32
    classes = CLASS_OF[drawn]
    assert (classes == classes[:, :, :1]).all(), "a row mixes classes"
    assert all(len(set(row)) == WAYS for row in classes[:, :, 0]), "a class repeats inside an episode"
    flat = drawn.reshape(1000, -1)
    assert all(len(set(row)) == flat.shape[1] for row in flat), "an image repeats inside an episode"
    assert chisquare(np.bincount(classes[:, :, 0].ravel(), minlength=len(SIZES))).pvalue > 1e-4
    for label in (int(SIZES.argmin()), int(SIZES.argmax())):
        images = drawn[classes == label] - OFFSETS[label]
        assert chisquare(np.bincount(images, minlength=SIZES[label])).pvalue > 1e-4
    first_way = np.bincount(classes[:, 0, 0], minlength=len(SIZES))
    assert chisquare(first_way).pvalue > 1e-4, "the order of classes is not random"


def test_same_key_same_episodes_and_another_key_others():
    np.testing.assert_array_equal(sample(3, 8), sample(3, 8))
    assert not np.array_equal(sample(3, 8), sample(4, 8))
    tasks = sample(3, 8)
    assert not (tasks[1:] == tasks[:-1]).all(axis=(1, 2)).any()


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, size=(len(CLASS_OF), 3, 4, 3), dtype=np.uint8)


def test_gathered_tasks_are_class_major_and_scaled_to_one(images):
    indices = official_episodes()[:2]
    tasks = episodes.gather_tasks(images, indices, SHOTS)
    assert tasks.support_images.shape == (2, WAYS * SHOTS, 3, 4, 3)
    assert tasks.query_images.shape == (2, WAYS * QUERIES, 3, 4, 3)
    assert tasks.support_images.dtype == jnp.float32
    np.testing.assert_array_equal(tasks.support_labels, np.tile(np.repeat(np.arange(WAYS), SHOTS), (2, 1)))
    np.testing.assert_array_equal(tasks.query_labels, np.tile(np.repeat(np.arange(WAYS), QUERIES), (2, 1)))
    tasks = jax.tree.map(np.asarray, tasks)
    for b, way in np.ndindex(2, WAYS):
        support = tasks.support_images[b][tasks.support_labels[b] == way]
        query = tasks.query_images[b][tasks.query_labels[b] == way]
        np.testing.assert_allclose(support, images[indices[b, way, :SHOTS]] / 255, rtol=1e-6)
        np.testing.assert_allclose(query, images[indices[b, way, SHOTS:]] / 255, rtol=1e-6)


def test_gathered_tasks_are_normalised_by_channel_inside_jit(images):
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    indices = official_episodes()[:2]
    tasks = jax.jit(lambda images, indices: episodes.gather_tasks(images, indices, SHOTS, mean, std))(images, indices)
    plain = episodes.gather_tasks(images, indices, SHOTS)
    expected = (np.asarray(plain.query_images) - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(tasks.query_images, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ways", "shots", "queries", "message"),
    [
        (50, 1, 15, "config.ways is 50, but split 'test' has 3 classes"),
        (3, 5, 10, "class 'lynx' of split 'test' has 12 images, but config.shots + config.queries = 5 + 10 = 15"),
        (1, 1, 1, "config.ways is 1, but must be at least 2"),
        (2, 0, 1, "config.shots is 0, but must be at least 1"),
        (2, 1, 0, "config.queries is 0, but must be at least 1"),
    ],
)
def test_episodes_that_do_not_fit_are_refused_in_a_sentence(ways, shots, queries, message):
    with pytest.raises(UserError) as error:
        episodes.check_episode_fits(np.array([20, 12, 20]), ("bear", "lynx", "wolf"), ways, shots, queries, "test")
    assert message in str(error.value)


def test_episodes_that_just_fit_are_accepted():
    episodes.check_episode_fits(np.array([20, 12, 20]), ("bear", "lynx", "wolf"), 3, 2, 10, "test")
