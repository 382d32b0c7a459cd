"""Thresholds and what is reported where a set lacks defects or masks; examples for the figure."""

import numpy as np
import pytest

from anomaly import evaluation, figures, report
from anomaly.evaluation import Calibration, calibrate, detection_metrics, why_undefined

RANDOM = np.random.default_rng(0)
MAPS = RANDOM.random((6, 8, 8)).astype(np.float32)
LABELS = np.array([0, 0, 0, 1, 1, 1], np.int32)
MASKS = np.zeros((6, 8, 8), bool)
MASKS[3:, 2:5, 2:5] = True
MAPS[3:, 2:5, 2:5] += 1
SCORES = MAPS.max(axis=(1, 2))


def thresholds(rule, labels=LABELS, masks=MASKS, quantile=0.5):
    return calibrate(MAPS, SCORES, labels, masks, rule, quantile, "the test images")


def test_best_f1_and_what_takes_its_place():
    found = thresholds("f1")
    assert SCORES[:3].max() < found.image_threshold <= SCORES[3:].min()
    assert MAPS[~MASKS].max() < found.pixel_threshold <= MAPS[MASKS].min()
    assert found.fitted_to == "best F1 on the test images"
    assert (found.low, found.high) == (MAPS.min(), MAPS.max())
    without_masks = thresholds("f1", masks=None)
    assert without_masks.image_threshold == found.image_threshold
    assert without_masks.pixel_threshold == MAPS[:3].max()
    good_only = thresholds("f1", labels=np.zeros(6, np.int32), masks=None)
    assert good_only.image_threshold == SCORES.max()
    assert good_only.fitted_to == "largest normal score of the test images"


def test_thresholds_from_good_images_only():
    assert thresholds("normal_max").image_threshold == SCORES[:3].max()
    assert thresholds("normal_quantile").image_threshold == np.median(SCORES[:3])
    assert thresholds("normal_quantile").fitted_to == "0.5 quantile of the normal score of the test images"


def test_all_metrics_of_a_perfect_map():
    everything = detection_metrics(MAPS, SCORES, LABELS, MASKS, True)
    assert everything.keys() == set(evaluation.METRICS)
    for name in everything.keys() - {"pro_reference"}:
        assert everything[name] == pytest.approx(1)
    assert why_undefined(LABELS, MASKS, True) == ""


NONE = np.zeros(6, np.int32)
IMAGE, PIXEL = "image_auroc, image_ap and image_f1_max", "pixel_auroc, pixel_ap, pixel_f1_max and aupro"


@pytest.mark.parametrize(
    ("labels", "masks", "sentence"),
    [
        (LABELS, None, f"{PIXEL} are undefined and left out (there are no masks)"),
        (
            NONE,
            np.zeros_like(MASKS),
            f"{IMAGE} are undefined and left out (no test image is defective); "
            f"{PIXEL} are undefined and left out (no mask marks a defect)",
        ),
        (NONE + 1, MASKS, f"{IMAGE} are undefined and left out (no test image is good)"),
        (LABELS, np.ones_like(MASKS), f"{PIXEL} are undefined and left out (the masks mark every pixel)"),
        (
            NONE[:0],
            MASKS[:0],
            f"{IMAGE} are undefined and left out (there are no test images); "
            f"{PIXEL} are undefined and left out (there are no test images)",
        ),
    ],
)
def test_undefined_metrics_are_left_out_and_named(labels, masks, sentence):
    assert why_undefined(labels, masks, False) == sentence
    found = detection_metrics(MAPS[: len(labels)], SCORES[: len(labels)], labels, masks, False)
    assert found.keys() == {name for name in evaluation.METRICS[:-1] if name not in sentence}
    assert all(np.isfinite(list(found.values())))


def test_calibration_survives_its_file(tmp_path):
    evaluation.write_calibration(tmp_path, thresholds("f1"))
    assert evaluation.read_calibration(tmp_path) == thresholds("f1")


def test_best_epoch_is_per_metric_and_up_to_a_step(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [(1, 0.5, 0.9), (2, 0.8, 0.7), (3, 0.99, 0.99)]
    file.write_text(
        "".join(
            f'{{"step": {step}, "kind": "evaluate", "image_auroc": {a}, "aupro": {b}, "other": 7}}\n'
            for step, a, b in lines
        )
    )
    assert report.best_of(file, 2) == {"image_auroc": 0.8, "aupro": 0.9}
    assert report.best_of(tmp_path / "none", 2) == {}


def test_examples_take_turns_between_kinds():
    defects = ("good", "good", "good", "crack", "crack", "dent")
    scores = np.array([0.1, 0.3, 0.2, 0.9, 0.5, 0.7])
    assert figures.choose_examples(defects, scores, 3) == [1, 3, 5]  # the highest of each kind
    assert figures.choose_examples(defects, scores, 5) == [0, 1, 3, 4, 5]  # then the lowest
    assert figures.choose_examples(defects, scores, 99) == list(range(6))


def test_heat_map_uses_the_range_of_the_run():
    calibration = Calibration(0.0, 1.0, 0.5, 0.5, "")
    image, quiet = np.full((8, 8, 3), 128, np.uint8), np.full((8, 8), 0.05)
    blue = figures.heat_map(image, quiet + 0.001 * np.arange(8), calibration)
    assert (blue[..., 2] > blue[..., 0]).all()  # nothing lights up, though values differ
    loud = quiet.copy()
    loud[2:6, 2:6] = 0.95
    marked = figures.heat_map(image, loud, calibration)
    assert (marked[2, 2] == (255, 0, 0)).all()
    assert marked[3, 3, 0] > marked[3, 3, 2]
    np.testing.assert_array_equal(image, 128)
