"""Rounds of fine-tuning, sampling of classes, augmentation of objects: the parts of target tasks without training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.data.dataset import Split
from common.errors import UserError
from multitask.detection import augment
from multitask.transfer import classification, finetuning, metric_learning
from tests.multitask import cli


def split(per_class=10, classes=4):
    labels = np.tile(np.arange(classes, dtype=np.int32), per_class)
    names = tuple(f"class{label}" for label in range(classes))
    return Split(np.zeros((len(labels), 8, 8, 3), np.uint8), labels, names)


def test_plan_searches_where_there_is_a_choice():
    one = finetuning.plan((1.0, 0.1), (0.3,))
    assert [(found.fraction, found.rate, found.search) for found in one] == [(1.0, 0.3, False), (0.1, 0.3, False)]
    several = finetuning.plan((0.5,), (0.1, 0.3), frozen_rate=0.05)
    assert [found.frozen for found in several] == [True, False, False, False]
    assert [found.search for found in several] == [False, True, True, False]
    accuracies = np.array([0.9, 0.4, 0.6, 0.0])
    assert finetuning.best_rate(several, accuracies, 3) == 0.3
    assert finetuning.best_rate(several, np.array([0.9, 0.5, 0.5, 0.0]), 3) == 0.1  # of equals the first


def test_places_are_class_balanced_and_search_never_sees_what_judges_it():
    rounds, images = finetuning.plan((1.0, 0.3), (0.1, 0.3)), split()
    found = finetuning.choose_places(rounds, images, 0.25, seed=0)
    assert found.train.shape == (6, 40)
    for one, train, apart in zip(rounds, found.train, found.held_out, strict=True):
        assert not set(train) & set(apart)
        assert len(apart) == (round(0.25 * one.fraction * 40) if one.search else 0)
        if not one.search:
            assert np.bincount(images.labels[np.unique(train)]).tolist() == [round(10 * one.fraction)] * 4
            counts = np.bincount(train, minlength=40)
            assert set(counts[counts > 0]) <= ({1} if one.fraction == 1 else {3, 4})
    again = finetuning.choose_places(rounds, images, 0.25, seed=0)
    np.testing.assert_array_equal(found.train, again.train)
    assert not np.array_equal(found.train, finetuning.choose_places(rounds, images, 0.25, seed=1).train)
    with pytest.raises(UserError, match=r"a label fraction of 0.01 leaves 1 image to choose a rate with"):
        finetuning.choose_places(finetuning.plan((0.01,), (0.1, 0.3)), split(classes=1), 0.1, seed=0)


def test_folds_are_class_balanced_and_differ():
    folds = classification.make_folds(split(), 3, 16)
    assert [np.bincount(split().labels[fold]).tolist() for fold in folds] == [[4, 4, 4, 4]] * 3
    assert not np.array_equal(folds[0], folds[1])


def test_batches_hold_different_images_of_different_classes():
    images = split(per_class=6, classes=5)
    places = jnp.asarray(metric_learning.find_classes(images, 2))
    for seed in range(20):
        batch = np.asarray(metric_learning.sample(jax.random.key(seed), places, 9, 3))
        assert len(set(batch)) == 9
        labels = images.labels[batch].reshape(3, 3)
        assert (labels == labels[:, :1]).all()
        assert len(set(labels[:, 0])) == 3


def test_unequal_and_empty_classes():
    images = Split(np.zeros((5, 8, 8, 3), np.uint8), np.array([0, 0, 0, 2, 2], np.int32), ("a", "b", "c"))
    with pytest.raises(UserError, match=r"class 'b' has 0 images to learn from, but .*images_per_class is 2"):
        metric_learning.find_classes(images, 2)
    full = Split(images.images, np.array([0, 0, 0, 1, 1], np.int32), ("a", "b"))
    places = jnp.asarray(metric_learning.find_classes(full, 2))
    for seed in range(10):
        batch = np.asarray(metric_learning.sample(jax.random.key(seed), places, 4, 2))
        assert sorted(full.labels[batch]) == [0, 0, 1, 1]  # padding is never drawn
        assert batch.min() >= 0


def test_random_part_is_the_middle_or_a_smaller_square():
    images = jnp.broadcast_to(jnp.arange(12.0)[None, None, :, None], (2, 12, 12, 3))
    keys = jax.random.split(jax.random.key(0), 2)
    same = metric_learning.random_part(images, keys, 8, 1.0, False)
    np.testing.assert_array_equal(same, images[:, 2:10, 2:10])
    parts = np.asarray(metric_learning.random_part(images, keys, 8, 0.25, False))
    assert parts.shape == (2, 8, 8, 3)
    steps = np.diff(parts[:, 4, 1:-1, 0], axis=1)
    # Even up to the antialiasing of the ramp.
    np.testing.assert_allclose(steps, np.broadcast_to(steps.mean(1, keepdims=True), steps.shape), rtol=0.05)
    assert ((steps.mean(1) >= 6 / 8 - 1e-3) & (steps.mean(1) <= 12 / 8 + 1e-3)).all()


def painted(box):
    image = np.zeros((1, 20, 20, 3), np.float32)
    image[0, box[0] : box[2], box[1] : box[3]] = 1
    return jnp.asarray(image), augment.Objects(jnp.asarray([[box]]) / 20.0, jnp.zeros((1, 1), jnp.int32))


def bounds(image):
    rows, columns = np.nonzero(np.asarray(image)[0, :, :, 0] > 0.5)
    return [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]


def test_boxes_move_with_their_pixels():
    image, objects = painted([2, 4, 8, 16])
    turned, moved = augment.flip(image, objects, jnp.asarray([True]))
    np.testing.assert_allclose(moved.boxes[0, 0] * 20, bounds(turned), atol=1e-4)
    for scale, shift in ((0.5, (0.25, 0.5)), (2.0, (-0.1, -0.5)), (1.0, (0.1, 0.2))):
        drawn, moved = augment.rescale(image, objects, jnp.asarray([scale]), jnp.asarray([shift]))
        np.testing.assert_allclose(moved.boxes[0, 0] * 20, bounds(drawn), atol=1.01)
    _, gone = augment.rescale(image, objects, jnp.asarray([2.0]), jnp.asarray([[-1.0, -1.0]]))
    assert gone.labels.tolist() == [[-1]]


def test_colour_and_nothing():
    image, objects = painted([2, 4, 8, 16])
    keys = jax.random.split(jax.random.key(1), 1)
    same, as_before = augment.augment(image, objects, keys, augment.Strength(False, 1.0, 1.0, 0.0))
    np.testing.assert_array_equal(same, image)
    np.testing.assert_array_equal(as_before.boxes, objects.boxes)
    other, _ = augment.augment(image, objects, keys, augment.Strength(False, 1.0, 1.0, 0.4))
    assert not np.array_equal(other, image)
    np.testing.assert_array_equal(bounds(other), bounds(image))


BAD = [
    ({"classification.probe.solver": "lbfg"}, r"config.classification.probe.solver .*\(did you mean 'lbfgs'\?\)"),
    ({"classification.probe.layer": "layer5"}, "config.classification.probe.layer is 'layer5'"),
    ({"classification.probe.l2": ()}, r"config.classification.probe.l2 is \(\), but must be one or more numbers"),
    ({"classification.finetune.learning_rates": (-0.1,)}, "learning_rates .* must be one or more numbers above 0"),
    ({"classification.finetune.fractions": (1.5,)}, r"fractions is \(1.5,\), but must be shares of the labels"),
    ({"classification.held_out_share": 1.0}, "held_out_share is 1.0, but must lie between 0 and 1"),
    ({"classification.padding": 16}, "config.classification.padding is 16, but must be below config.image_size, 16"),
    ({"classification.knn.k": 0}, "config.classification.knn.k is 0, but must be a number above 0"),
    ({"clustering.dataset": "glyph"}, r"config.clustering.dataset .*\(did you mean 'glyphs'\?\)"),
    ({"clustering.loss": "n-pair"}, "config.clustering.loss is 'n-pair'"),
    ({"clustering.stored_size": 8}, "stored_size is 8, but must be at least clustering.image_size, 16"),
    ({"clustering.images_per_class": 4}, "images_per_class is 4, but must be 2 with the N-pair loss"),
    ({"clustering.batch_size": 7}, "config.clustering.batch_size is 7, but must be a multiple of"),
    ({"clustering.recall_ks": (0,)}, r"recall_ks is \(0,\), but must be one or more numbers above 0"),
    ({"clustering.kmeans.empty": "drop"}, "config.clustering.kmeans.empty is 'drop'"),
    ({"detection.dataset": "voc"}, "config.detection.dataset is 'voc'"),
    ({"detection.head": "yolo"}, "config.detection.head is 'yolo', but must be one of 'centernet', 'ssd'"),
    ({"detection.stride": 3}, "detection.stride is 3, but must be the encoder's stride 4 halved some times, or it"),
    ({"detection.image_size": 30}, "image_size is 30, but must be a multiple of the encoder's stride, 4"),
    ({"detection.max_detections": 65}, "max_detections is 65, but must be at most 64, the cells"),
    ({"detection.max_scale": 0.5}, "max_scale is 0.5, but must be at least detection.min_scale, 1.0"),
    ({"detection.voc.box_offset": 2}, "box_offset is 2, but must be 0 or 1 pixels"),
    ({"detection.head": "ssd", "detection.ssd.scales": (0.5,)}, "scales .* must have one more number than there are"),
    ({"detection.head": "ssd", "detection.ssd.scales": (0.5, 0.2)}, "scales .* must be rising numbers above 0"),
    ({"detection.num_steps": 0}, "num_steps is 0, but must be at least 1"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=lambda value: str(value)[:60])
def test_config_that_cannot_work(fields, message):
    from multitask import experiment

    with pytest.raises(UserError, match=message):
        experiment.phases(cli.config(**fields))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("classification", {"batch_size": 65}, "classification.batch_size is 65, but must be at most 64, the images"),
        ("clustering", {"batch_size": 18}, "clustering.batch_size is 18, but must be at most 16, for its classes"),
        ("clustering", {"recall_ks": (1, 160)}, r"recall_ks is \(1, 160\), but must be below 160, the test images"),
        ("detection", {"batch_size": 17}, "detection.batch_size is 17, but must be at most 16, the images"),
        ("detection", {"dataset_path": "x"}, "data set 'shapes' is drawn"),
    ],
)
def test_what_does_not_fit_the_data(name, fields, message):
    import importlib

    module = importlib.import_module(f"multitask.transfer.{name}")
    with pytest.raises(UserError, match=message):
        module.build(cli.config(**{f"{name}.{field}": value for field, value in fields.items()}), {})
