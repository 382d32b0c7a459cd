"""Episodes: which images make up an N-way K-shot task, by the official sampler (numpy) or one on the device.

Images lie in one array, class after class, so an episode is nothing but image indices [N, K + Q]: a row per class,
the K support images first, then the Q query images.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8, UInt32

from common.errors import UserError
from fewshot.adaptation import Task


def official_base_seed(seed: int = 0) -> int:
    """Seed of the first episode of a run of the official code; its configs all have `seed` 0, which gives 985773."""
    return int(np.random.RandomState(seed).randint(1, 999999))


def official_episode(
    seed: int, class_sizes: Int[np.ndarray, " C"], ways: int, shots: int, queries: int
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, "N K"], Int[np.ndarray, "N Q"]]:
    """Classes [N] and, within each class, support [N, K] and query [N, Q] image numbers of the episode of `seed`.

    Reproduces the official sampler draw by draw, provided that the classes come in lexicographic order of their names.
    """
    random = np.random.RandomState(seed)
    classes = random.choice(len(class_sizes), ways, replace=False)
    random.shuffle(classes)
    random.randint(0, 4, size=ways)  # the official code draws rotations here even where it does not rotate
    images = np.stack([random.choice(class_sizes[label], shots + queries, replace=False) for label in classes])
    return classes, images[:, :shots], images[:, shots:]


def official_episodes(
    base_seed: int, first: int, count: int, class_sizes: Int[np.ndarray, " C"], ways: int, shots: int, queries: int
) -> Int[np.ndarray, "count N per_class"]:
    """Image indices of episodes `first` .. `first + count - 1` of a run; episode i is that of seed `base_seed + i`.

    Validation and test start at 0 every time; training counts on, so that a resumed run continues the sequence.
    """
    offsets = np.cumsum(class_sizes) - class_sizes
    episodes = np.empty((count, ways, shots + queries), np.int32)
    for i in range(count):
        classes, support, query = official_episode(base_seed + first + i, class_sizes, ways, shots, queries)
        episodes[i] = offsets[classes, None] + np.concatenate([support, query], axis=1)
    return episodes


@partial(jax.jit, static_argnames=("num_tasks", "ways", "shots", "queries", "max_class_size"))
def sample_episodes(
    key: PRNGKeyArray | UInt32[Array, "2"],
    class_offsets: Int[Array, " C"],
    class_sizes: Int[Array, " C"],
    *,
    num_tasks: int,
    ways: int,
    shots: int,
    queries: int,
    max_class_size: int,
) -> Int[Array, "B N per_class"]:
    """Image indices of `num_tasks` independent episodes, drawn on the device.

    The classes of a task and the images of a class are drawn uniformly without replacement; `max_class_size` is the
    largest of `class_sizes`. Assumes data that `check_episode_fits` accepts.
    """
    class_key, image_key = jax.random.split(key)
    # The places of the k largest of n random numbers are k of n drawn without replacement, in random order.
    class_scores = jax.random.uniform(class_key, (num_tasks, class_sizes.shape[0]))
    classes = jax.lax.top_k(class_scores, ways)[1]
    image_scores = jax.random.uniform(image_key, (num_tasks, ways, max_class_size))
    exists = jnp.arange(max_class_size)[None, None] < class_sizes[classes][:, :, None]
    images = jax.lax.top_k(jnp.where(exists, image_scores, -1.0), shots + queries)[1]
    return (class_offsets[classes][:, :, None] + images).astype(jnp.int32)


def gather_tasks(
    images: UInt8[Array, "n h w c"] | UInt8[np.ndarray, "n h w c"],
    indices: Int[Array, "B N per_class"] | Int[np.ndarray, "B N per_class"],
    shots: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Task:
    """The tasks of episodes that are given as image indices; see `make_tasks`."""
    return make_tasks(jnp.asarray(images)[jnp.asarray(indices)], shots, mean, std)


def make_tasks(
    pixels: UInt8[Array, "B N per_class h w c"],
    shots: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Task:
    """Tasks with a leading axis B: images as float32 [B, N*K, h, w, c] and [B, N*Q, h, w, c], class by class.

    Values are x / 255, then, if both are given, (x - mean) / std per channel. A class's label is its place on the
    N axis.
    """
    num_tasks, ways = pixels.shape[:2]

    def part(chosen: UInt8[Array, "B N k h w c"]) -> tuple[Float[Array, "B Nk h w c"], Int[Array, "B Nk"]]:
        values = chosen.reshape(num_tasks, -1, *chosen.shape[3:]).astype(jnp.float32) / 255.0
        if mean is not None and std is not None:
            channel = (1, 1, 1, 1, chosen.shape[-1])
            shift, scale = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
            values = (values - shift.reshape(channel)) / scale.reshape(channel)
        labels = jnp.repeat(jnp.arange(ways, dtype=jnp.int32), chosen.shape[2])
        return values, jnp.tile(labels[None], (num_tasks, 1))

    return Task(*part(pixels[:, :, :shots]), *part(pixels[:, :, shots:]))


def check_episode_fits(
    class_sizes: Int[np.ndarray, " C"],
    class_names: Sequence[str],
    ways: int,
    shots: int,
    queries: int,
    split: str,
) -> None:
    """Raise UserError that names the field, the split and what the data allow unless such episodes can be drawn."""
    for field, value, least in (("ways", ways, 2), ("shots", shots, 1), ("queries", queries, 1)):
        if value < least:
            raise UserError(f"config.{field} is {value}, but must be at least {least}.")
    if ways > len(class_sizes):
        raise UserError(
            f"config.ways is {ways}, but split {split!r} has {len(class_sizes)} classes; "
            "choose fewer ways or a data set with more classes."
        )
    smallest = int(np.argmin(class_sizes))
    if shots + queries > class_sizes[smallest]:
        raise UserError(
            f"class {class_names[smallest]!r} of split {split!r} has {class_sizes[smallest]} images, but config.shots "
            f"+ config.queries = {shots} + {queries} = {shots + queries}; lower them or remove the class."
        )
