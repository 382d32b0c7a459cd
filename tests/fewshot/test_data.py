"""Images on the device and on the host: the same episodes of the same images, whoever draws and gathers them."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import parallel, rng
from common.data import registry
from common.evaluation import PerExample
from common.experiment import Experiment
from fewshot import data, experiment, train
from tests.common.toys import running
from tests.fewshot import cli


def build(name="cxgrad", **fields) -> Experiment:
    return experiment.build(cli.config(name, **fields), {})


def images_of_step(built: Experiment, seed: int, step: int) -> np.ndarray:
    """The images [B, N, K + Q, h, w, c] of a training step, as the compiled step sees them."""
    if built.host_batch is not None:
        batch = built.host_batch(seed, step)
    else:
        assert built.batch is not None
        batch = built.batch(built.data, jnp.asarray(step), rng.stream(seed, "batch", step))
    placed = np.asarray(parallel.place(batch, parallel.batched()))
    return placed if placed.ndim == 6 else built.data["train"][placed]


@pytest.mark.parametrize("sampler", ["device", "official"])
def test_host_and_device_draw_the_same_episodes(sampler):
    device, host = (build(sampler=sampler, images_on=place) for place in ("device", "host"))
    assert {"train", "held_out"} <= device.data.keys()
    assert not {"train", "held_out"} & host.data.keys()  # nothing large goes to the device
    for seed, step in ((0, 0), (0, 7), (3, 2), (2**32 - 1, 1)):
        one, other = images_of_step(device, seed, step), images_of_step(host, seed, step)
        assert other.shape == (2, 5, 4, 16, 16, 1)
        assert other.dtype == np.uint8
        np.testing.assert_array_equal(one, other)
    assert (images_of_step(host, 0, 0) != images_of_step(host, 0, 1)).any()
    assert (images_of_step(host, 0, 0) != images_of_step(host, 1, 0)).any()


def test_host_batch_does_not_depend_on_the_thread():
    host, seen = build(images_on="host"), []
    thread = threading.Thread(target=lambda: seen.append(images_of_step(host, 0, 5)))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(seen[0], images_of_step(host, 0, 5))


def test_evaluation_gets_the_same_images():
    """The tasks that evaluation adapts to, through its own streaming, whose last batch is padded."""

    def tasks(place):
        config = cli.config("maml", images_on=place, episodes_per_batch=4)
        loaded = data.load(config)
        recipe = experiment.make_recipe(config, loaded.dataset, first_order=True, training=False)

        def images(state, arrays, batch):
            chosen = arrays["episodes"][batch] if batch.ndim == 1 else batch
            return train.make_tasks(recipe, arrays.get("held_out"), chosen)

        count = len(loaded.validation) + len(loaded.test)
        stream = PerExample(images, count, config.episodes_per_batch, loaded.fetch)
        return stream({}, parallel.place_data(loaded.arrays), range(1, count))

    device, host = tasks("device"), tasks("host")
    assert device.support_images.shape == (11, 5, 16, 16, 1)
    running.assert_same_arrays(running.arrays(device), running.arrays(host))


@pytest.mark.slow
def test_a_run_is_the_same_whichever_holds_the_images(finished, tmp_path):
    cli.run("cxgrad", tmp_path / "run", images_on="host", **finished.fields)
    running.assert_same_run(finished.folder, tmp_path / "run")


def test_every_process_reads_the_rows_of_its_own_devices():
    asked = []
    images = np.arange(50, dtype=np.uint8)[:, None, None, None]
    indices = np.random.default_rng(0).integers(0, 50, (8, 2, 3))
    rows = data.gather(images, indices)
    whole = rows[slice(None), slice(None)]
    np.testing.assert_array_equal(whole, images[indices])
    counted = parallel.Rows(rows.shape, lambda part: asked.append(part) or rows[part,])
    placed = parallel.place({"a": counted}, parallel.batched())["a"]
    np.testing.assert_array_equal(placed, whole)
    assert len(asked) == jax.local_device_count()


@pytest.mark.parametrize(
    ("field", "memory", "num_bytes", "expected"),
    [
        ("auto", None, 10**15, "device"),  # a CPU has the host's memory
        ("auto", 80 << 30, 40 << 30, "device"),
        ("auto", 80 << 30, (40 << 30) + 1, "host"),
        ("device", 80 << 30, 70 << 30, "device"),
        ("host", 80 << 30, 1, "host"),
        ("host", None, 1, "host"),
    ],
)
def test_where_the_images_live(field, memory, num_bytes, expected, monkeypatch):
    monkeypatch.setattr(data, "device_memory", lambda: memory)
    assert data.images_on(cli.config("maml", images_on=field), num_bytes) == expected


def test_pooled_classes_are_sorted_and_stand_together():
    digits = registry.load("digits", task="classification", image_size=16, channels=1)
    pooled = data.pool(digits)
    assert pooled.class_names == tuple("0123456789")
    assert len(pooled.images) == 1797
    assert (np.diff(pooled.labels) >= 0).all()
    ones = [split.images[split.labels == 1] for split in digits.splits.values()]
    np.testing.assert_array_equal(pooled.images[pooled.labels == 1], np.concatenate(ones))


@pytest.mark.parametrize("sampler", ["device", "official"])
@pytest.mark.parametrize("place", ["device", "host"])
def test_audit_of_a_thousand_episodes(sampler, place):
    """No class of another split, five classes an episode, no image twice: by the images that a step really gets."""
    built = build(sampler=sampler, images_on=place, tasks_per_step=250)
    options = {"difficulty": "easy", "instances_per_class": 20}
    splits = registry.load("glyphs", task="fewshot", image_size=16, channels=1, options=options).splits
    owner = {}
    for split, content in splits.items():
        for image, label in zip(content.images, content.labels, strict=True):
            owner.setdefault(image.tobytes(), set()).add((split, int(label)))
    for step in range(4):
        for episode in images_of_step(built, 0, step):
            classes = [set.intersection(*(owner[image.tobytes()] for image in row)) for row in episode]
            assert all({split for split, _ in found} == {"train"} for found in classes)
            assert len(set().union(*classes)) >= 5
            assert all(len({image.tobytes() for image in row}) == 4 for row in episode)
