"""Metrics against the golden numbers and slow code that follows the definitions."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn import metrics as sk

from anomaly import metrics
from anomaly.scoring import rescale_dataset
from tests.anomaly import golden


@pytest.mark.parametrize("name", ["continuous", "tied"])
def test_golden_metrics(name):
    arrays = golden.load("metrics")
    expected = arrays.under(f"{name}/")
    masks, raw = arrays["masks"][:, 0], expected["scores"].astype(np.float64)
    rescaled = rescale_dataset(raw)
    assert metrics.connected_regions(masks)[1] == arrays["num_regions"]
    images = metrics.rank_images(rescaled.max(axis=(1, 2)), arrays["labels"])
    pixels, raw_pixels = metrics.rank_pixels(rescaled, masks), metrics.rank_pixels(raw, masks)
    f1, threshold = metrics.f1_max(pixels)
    values = {
        "image_auroc": metrics.auroc(images),
        "pixel_auroc": metrics.auroc(pixels),
        "image_ap": metrics.average_precision(metrics.rank_images(raw.max(axis=(1, 2)), arrays["labels"])),
        "pixel_ap": metrics.average_precision(raw_pixels),
        "aupro_exact_030": metrics.aupro(raw_pixels),
        "aupro_exact_005": metrics.aupro(raw_pixels, 0.05),
        "aupro_exact_100": metrics.aupro(raw_pixels, 1.0),
        "pro_reference_200step": metrics.pro_reference(pixels),
        "f1_max": f1,
        "f1_threshold_on_rescaled": threshold,
    }
    for key, value in values.items():
        np.testing.assert_allclose(value, expected[key], rtol=0, atol=1e-9, err_msg=key)


def test_golden_pro_curve():
    arrays = golden.load("metrics")
    expected = arrays.under("tied/")
    fpr, pro = metrics.pro_curve(metrics.rank_pixels(expected["scores"], arrays["masks"][:, 0]))
    # Ours has a corner before each step and leaves out points on straight lines: all given points lie on it.
    for x, y in zip(expected["pro_curve_fpr"], expected["pro_curve_pro"], strict=True):
        lengths = np.hypot(np.diff(fpr), np.diff(pro))
        through = np.hypot(x - fpr[:-1], y - pro[:-1]) + np.hypot(x - fpr[1:], y - pro[1:])
        assert np.min(through - lengths) < 1e-9


# --- against slow code ----------------------------------------------------------------------------------------------


def slow_aupro(scores, masks, limit):
    """All distinct thresholds one by one."""
    regions = []
    for index, mask in enumerate(masks):
        labelled, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [(index, labelled == number) for number in range(1, count + 1)]
    outside = masks == 0
    points = [(0.0, 0.0)]
    for threshold in np.unique(scores)[::-1]:
        predicted = scores >= threshold
        overlap = np.mean([predicted[index][region].mean() for index, region in regions])
        points.append((predicted[outside].mean(), overlap))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def slow_f1(scores, labels):
    best = (-1.0, np.nan)
    for threshold in np.unique(scores):
        predicted = scores >= threshold
        f1 = 2 * np.sum(predicted & (labels == 1)) / (predicted.sum() + labels.sum())
        if f1 > best[0]:
            best = f1, threshold
    return best


def slow_pro_reference(scores, masks, limit=0.3):
    low, high = scores.min(), scores.max()
    regions = [(i, ndimage.label(mask, np.ones((3, 3)))) for i, mask in enumerate(masks)]
    points = []
    for k in range(200):
        predicted = scores > high - k * (high - low) / 200
        overlaps = [predicted[i][lab == n].mean() for i, (lab, count) in regions for n in range(1, count + 1)]
        points.append((predicted[masks == 0].mean(), np.mean(overlaps)))
    fpr, pro = np.array([point for point in points if point[0] <= limit]).T
    fpr, pro = ((axis - axis.min()) / (axis.max() - axis.min()) for axis in (fpr, pro))
    return np.sum(np.diff(fpr) * (pro[1:] + pro[:-1]) / 2)


@st.composite
def some_test_set(draw):
    seed, levels = draw(st.integers(0, 2**16)), draw(st.sampled_from([2, 3, 10, 0]))
    random = np.random.default_rng(seed)
    masks = (ndimage.gaussian_filter(random.standard_normal((3, 9, 11)), (0, 1, 1)) > 0.35).astype(np.uint8)
    masks[0, 0, 0], masks[1, -1, -1] = 1, 0
    scores = random.standard_normal(masks.shape) + 0.7 * masks
    return (np.round(scores * levels) if levels else scores), masks


@settings(max_examples=40, deadline=None)
@given(some_test_set())
def test_everything_equals_the_definition(case):
    scores, masks = case
    ranking = metrics.rank_pixels(scores, masks)
    flat, labels = scores.ravel(), masks.ravel()
    np.testing.assert_allclose(metrics.auroc(ranking), sk.roc_auc_score(labels, flat), rtol=1e-10)
    np.testing.assert_allclose(metrics.average_precision(ranking), sk.average_precision_score(labels, flat), rtol=1e-10)
    np.testing.assert_allclose(metrics.f1_max(ranking), slow_f1(flat, labels), rtol=1e-10)
    for limit in (0.05, 0.3, 1.0):
        np.testing.assert_allclose(metrics.aupro(ranking, limit), slow_aupro(scores, masks, limit), rtol=1e-10)
    np.testing.assert_allclose(metrics.rank_images(flat, labels.astype(np.int32)).normal, ranking.normal)


def test_reference_pro_equals_the_definition():
    random = np.random.default_rng(5)
    masks = (ndimage.gaussian_filter(random.standard_normal((4, 20, 20)), (0, 2, 2)) > 0.15).astype(np.uint8)
    scores = random.random(masks.shape) + 0.4 * masks
    got = metrics.pro_reference(metrics.rank_pixels(scores, masks))
    np.testing.assert_allclose(got, slow_pro_reference(scores, masks), rtol=1e-9)
    assert got > metrics.aupro(metrics.rank_pixels(scores, masks))


def test_auroc_counts_ties_half_and_keeps_its_value_under_any_rising_map():
    scores, labels = np.array([1.0, 2.0, 2.0, 3.0]), np.array([0, 0, 1, 1])
    assert metrics.auroc(metrics.rank_images(scores, labels)) == 0.875
    assert metrics.auroc(metrics.rank_images(np.exp(scores), labels)) == 0.875


def test_undefined_is_nan_and_not_zero():
    maps = np.random.default_rng(0).random((2, 4, 4))
    for masks in (np.zeros((2, 4, 4), np.uint8), np.ones((2, 4, 4), np.uint8)):
        ranking = metrics.rank_pixels(maps, masks)
        assert not metrics.is_defined(ranking)
        values = (metrics.auroc, metrics.average_precision, metrics.aupro, metrics.pro_reference)
        assert all(np.isnan(value(ranking)) for value in values)
        assert np.isnan(metrics.f1_max(ranking)).all()


def test_normal_images_count_as_false_alarms_only():
    random = np.random.default_rng(1)
    maps, masks = random.random((1, 8, 8)), np.zeros((1, 8, 8), np.uint8)
    masks[0, :2, :2] = 1
    alone = metrics.aupro(metrics.rank_pixels(maps, masks))
    loud = np.concatenate([maps, np.full((1, 8, 8), 2.0)])
    both = metrics.aupro(metrics.rank_pixels(loud, np.concatenate([masks, np.zeros_like(masks)])))
    assert alone > 0
    assert both == 0


def test_fast_at_full_resolution():
    """20 images of 900 x 900; the loop over 200 thresholds and regions takes minutes."""
    random = np.random.default_rng(2)
    masks = np.zeros((20, 900, 900), np.uint8)
    for index in range(0, 20, 2):
        masks[index, 100 : 160 + index, 200:260] = 1
        masks[index, 400:420, 500 : 520 + index] = 1
    maps = random.random(masks.shape, np.float32) + 0.3 * masks.astype(np.float32)
    started = time.process_time()
    ranking = metrics.rank_pixels(maps, masks)
    assert 0.3 < metrics.aupro(ranking) < metrics.auroc(ranking) < 1
    metrics.average_precision(ranking)
    assert time.process_time() - started < 20
