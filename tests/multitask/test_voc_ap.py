"""Average precision: golden, a second implementation that shares no line, invariants."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multitask.detection import voc_ap
from tests.multitask import golden

GOLDEN = golden.load("voc_ap")
CLASSES = int(GOLDEN["num_classes"])


def golden_case():
    detected = voc_ap.Detected(GOLDEN["det_boxes"], GOLDEN["det_scores"], GOLDEN["det_labels"])
    return detected, voc_ap.Objects(GOLDEN["gt_boxes"], GOLDEN["gt_labels"], GOLDEN["gt_difficult"])


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(
    ("name", "settings_"),
    [("all", {}), ("11", {"rule": "11point"}), ("11_legacy", {"rule": "11point", "legacy_thresholds": True})],
)
def test_matches_the_golden(offset, name, settings_):
    threshold = float(GOLDEN["iou_threshold"])
    found = voc_ap.evaluate(*golden_case(), CLASSES, threshold=threshold, box_offset=offset, **settings_)
    np.testing.assert_array_equal(found.objects, GOLDEN["npos"])
    np.testing.assert_array_equal(found.flags, GOLDEN[f"flags_off{offset}"])
    np.testing.assert_allclose(found.ap, GOLDEN[f"ap_{name}_off{offset}"], atol=1e-9)
    if not settings_.get("legacy_thresholds"):
        np.testing.assert_allclose(found.mean, GOLDEN[f"map_{name}_off{offset}"], atol=1e-9)


def test_trap_of_float_thresholds():
    flags, objects = GOLDEN["trap_tp"], int(GOLDEN["trap_npos"])
    np.testing.assert_allclose(voc_ap.average_precision(flags, objects, "11point"), GOLDEN["trap_ap_11"], atol=1e-9)
    legacy = voc_ap.average_precision(flags, objects, "11point", legacy_thresholds=True)
    np.testing.assert_allclose(legacy, GOLDEN["trap_ap_11_legacy"], atol=1e-9)
    np.testing.assert_allclose(voc_ap.average_precision(flags, objects), GOLDEN["trap_ap_all"], atol=1e-9)


def test_an_overlap_of_exactly_one_half_counts_unless_strict():
    detected, objects = golden_case()
    loose, strict = (voc_ap.evaluate(detected, objects, CLASSES, strict=strict) for strict in (False, True))
    assert (loose.flags[1, 0], strict.flags[1, 0]) == (voc_ap.TRUE, voc_ap.FALSE)


def slow_ap(detected, objects, label, rule):
    """One class in plain Python: rank, match greedily, walk along the curve."""
    ranked = []
    for image, labels in enumerate(detected.labels):
        for place, own in enumerate(labels):
            if own == label:
                ranked.append((-detected.scores[image, place], image, place))
    taken, curve, true, false = set(), [], 0, 0
    to_find = sum(
        own == label and not hard
        for labels, difficult in zip(objects.labels, objects.difficult, strict=True)
        for own, hard in zip(labels, difficult, strict=True)
    )
    for _, image, place in sorted(ranked):
        box, best, chosen = detected.boxes[image, place].tolist(), -1.0, None
        for number, own in enumerate(objects.labels[image]):
            if own != label:
                continue
            y1, x1, y2, x2 = objects.boxes[image, number].tolist()
            height, width = min(box[2], y2) - max(box[0], y1), min(box[3], x2) - max(box[1], x1)
            shared = max(height, 0) * max(width, 0)
            both = (box[2] - box[0]) * (box[3] - box[1]) + (y2 - y1) * (x2 - x1) - shared
            if shared / both > best:
                best, chosen = shared / both, number
        if chosen is not None and best >= 0.5 and objects.difficult[image, chosen]:
            continue
        if chosen is not None and best >= 0.5 and (image, chosen) not in taken:
            taken.add((image, chosen))
            true += 1
        else:
            false += 1
        curve.append((true, true / (true + false)))
    if not to_find:
        return np.nan
    if rule == "11point":
        return sum(max([p for t, p in curve if 10 * t >= r * to_find], default=0.0) for r in range(11)) / 11
    return sum(max([p for t, p in curve if t >= wanted], default=0.0) for wanted in range(1, to_find + 1)) / to_find


@st.composite
def some_case(draw):
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    images, objects, found, classes = random.integers(1, 5), random.integers(1, 5), random.integers(1, 9), 3
    corner = random.uniform(0, 60, (images, objects, 2))
    boxes = np.concatenate([corner, corner + random.uniform(8, 40, (images, objects, 2))], -1)
    truth = voc_ap.Objects(
        boxes, random.integers(-1, classes, (images, objects)), random.random((images, objects)) < 0.2
    )
    near = random.integers(0, objects, (images, found))
    guess = np.take_along_axis(boxes, near[..., None], 1) + random.normal(0, 3, (images, found, 4))
    guess[..., 2:] = np.maximum(guess[..., 2:], guess[..., :2] + 1)
    labels = np.take_along_axis(truth.labels, near, 1)
    labels = np.where(random.random(labels.shape) < 0.3, random.integers(-1, classes, labels.shape), labels)
    return voc_ap.Detected(guess, np.round(random.random((images, found)), 1), labels), truth


@settings(max_examples=60, deadline=None)
@given(some_case())
def test_equals_the_second_implementation_and_depends_on_order_only(case):
    detected, objects = case
    for rule in voc_ap.RULES:
        found = voc_ap.evaluate(detected, objects, 3, rule=rule)
        np.testing.assert_allclose(found.ap, [slow_ap(detected, objects, c, rule) for c in range(3)], atol=1e-12)
        other = detected._replace(scores=np.exp(3 * detected.scores) - 7)
        np.testing.assert_array_equal(voc_ap.evaluate(other, objects, 3, rule=rule).ap, found.ap)
        lowest = detected.scores.min() - 1
        twice = voc_ap.Detected(
            np.concatenate([detected.boxes] * 2, 1),
            np.concatenate([detected.scores, np.full_like(detected.scores, lowest)], 1),
            np.concatenate([detected.labels] * 2, 1),
        )
        ap = voc_ap.evaluate(twice, objects, 3, rule=rule).ap
        assert (ap <= found.ap + 1e-12)[~np.isnan(found.ap)].all()


def test_perfect_detections_have_an_average_precision_of_one():
    _, objects = golden_case()
    detected = voc_ap.Detected(objects.boxes, np.ones(objects.labels.shape), objects.labels)
    for rule in voc_ap.RULES:
        assert voc_ap.evaluate(detected, objects, CLASSES, rule=rule).mean == 1


def test_no_object_at_all_is_nan():
    detected, objects = golden_case()
    nothing = objects._replace(labels=np.full_like(objects.labels, -1))
    assert np.isnan(voc_ap.evaluate(detected, nothing, CLASSES).mean)
