"""Overlap, suppression, CenterNet and SSD against the golden file, slow definitions and their own inverses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multitask.detection import boxes, centernet, ssd
from tests.multitask import golden

GOLDEN = golden.load("detection").mapped(jnp.asarray)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def some_boxes(random, count):
    corner, size = random.uniform(0, 0.7, (count, 2)), random.uniform(0.05, 0.3, (count, 2))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def test_overlap_matches_the_golden_and_counting_pixels():
    np.testing.assert_allclose(boxes.iou(GOLDEN["iou_a"], GOLDEN["iou_b"]), GOLDEN["iou"], **TOLERANCE)
    random = np.random.default_rng(0)
    for _ in range(20):
        pair = np.sort(random.integers(0, 12, (2, 2, 2)), axis=1).reshape(2, 4)
        painted = np.zeros((2, 12, 12), bool)
        for box, picture in zip(pair, painted, strict=True):
            picture[box[0] : box[2], box[1] : box[3]] = True
        shared, union = painted.all(0).sum(), painted.any(0).sum()
        found = boxes.iou(jnp.asarray(pair[:1], jnp.float32), jnp.asarray(pair[1:], jnp.float32))
        np.testing.assert_allclose(found, shared / union if union else 0.0, rtol=1e-6)


def test_suppression_matches_the_golden():
    order, kept = boxes.suppress(GOLDEN["nms_boxes"], GOLDEN["nms_scores"], float(GOLDEN["nms_threshold"]))
    wanted = GOLDEN["nms_keep"]
    np.testing.assert_array_equal(np.asarray(order)[np.asarray(kept)], wanted[wanted >= 0])


def test_anchors_matching_and_targets_match_the_golden():
    anchors = ssd.make_anchors(*(GOLDEN[f"ssd_{name}"].tolist() for name in ("levels", "scales", "ratios")))
    np.testing.assert_allclose(anchors, GOLDEN["anchors"], **TOLERANCE)
    anchors = jnp.asarray(anchors, jnp.float32)
    found = jax.vmap(ssd.match, (None, 0, 0))(anchors, GOLDEN["gt_boxes"], GOLDEN["gt_labels"])
    np.testing.assert_array_equal(found.objects, GOLDEN["ssd_match"])

    def both(offsets, logits):
        parts = ssd.losses(offsets, logits, found.classes, found.offsets)
        return parts.classification + parts.localization, parts

    inputs = GOLDEN["ssd_loc"], GOLDEN["ssd_cls"]
    (of_offsets, of_logits), parts = jax.grad(both, (0, 1), has_aux=True)(*inputs)
    np.testing.assert_array_equal(parts.selected, GOLDEN["ssd_selected"])
    assert parts.positives == GOLDEN["ssd_num_pos"]
    np.testing.assert_allclose(parts.classification, GOLDEN["ssd_loss_cls"], **TOLERANCE)
    np.testing.assert_allclose(parts.localization, GOLDEN["ssd_loss_loc"], **TOLERANCE)
    np.testing.assert_allclose(of_offsets, GOLDEN["ssd_grad_loc"], **TOLERANCE)
    np.testing.assert_allclose(of_logits, GOLDEN["ssd_grad_cls"], **TOLERANCE)
    decoded = ssd.decode(jnp.asarray(GOLDEN["ssd_decode_input"]), anchors)
    np.testing.assert_allclose(decoded, GOLDEN["ssd_decoded"], **TOLERANCE)


def test_ssd_decodes_what_it_encodes_and_detects_what_it_was_told():
    random = np.random.default_rng(1)
    anchors = jnp.asarray(ssd.make_anchors((8, 4), (0.2, 0.4, 0.7), (2.0,)), jnp.float32)
    wanted = jnp.asarray(some_boxes(random, len(anchors)))
    np.testing.assert_allclose(ssd.decode(ssd.encode(wanted, anchors), anchors), wanted, rtol=1e-4, atol=1e-5)
    objects, labels = jnp.asarray([[0.1, 0.1, 0.35, 0.3], [0.5, 0.5, 0.9, 0.9]]), jnp.asarray([0, 2])
    match = ssd.match(anchors, objects, labels)
    logits = 20.0 * jax.nn.one_hot(match.classes, 4)
    found, scores, kinds = ssd.detect(match.offsets, logits, anchors, 5)
    assert sorted(kinds[:2].tolist()) == [0, 2]
    order = jnp.argsort(kinds[:2])
    np.testing.assert_allclose(found[order], objects, atol=1e-5)
    assert scores[1] > 0.99
    assert scores[2] < 0.01


def test_radius_matches_the_golden_and_keeps_the_overlap_it_promises():
    heights, widths = (jnp.asarray(GOLDEN[f"radius_{axis}"], jnp.float32) for axis in "hw")
    found = centernet.gaussian_radius(heights, widths)
    np.testing.assert_allclose(found, GOLDEN["radius_value"], **TOLERANCE)
    for h, w, r in zip(heights.tolist(), widths.tolist(), found.tolist(), strict=True):
        true = jnp.asarray([[0.0, 0.0, h, w]])
        moved = [[r, r, h + r, w + r], [r, r, h - r, w - r], [-r, -r, h + r, w + r]]
        assert boxes.iou(true, jnp.asarray(moved)).min() >= 0.7 - 1e-4
    assert (centernet.gaussian_radius(heights, widths, "legacy") > found).all()


def batch_targets(gt_boxes, gt_labels, size, classes):
    return jax.vmap(lambda box, label: centernet.make_targets(box, label, size, classes))(gt_boxes, gt_labels)


def golden_targets():
    size, classes = int(GOLDEN["cn_size"]), int(GOLDEN["cn_num_classes"])
    return batch_targets(jnp.asarray(GOLDEN["cn_gt_boxes"]), jnp.asarray(GOLDEN["cn_gt_labels"]), size, classes)


def test_centernet_targets_match_the_golden():
    found, real = golden_targets(), GOLDEN["cn_mask"]
    np.testing.assert_array_equal(found.real, real)
    np.testing.assert_allclose(found.heat, GOLDEN["cn_heat"], **TOLERANCE)
    for ours, name in ((found.index, "index"), (found.sizes, "wh"), (found.offsets, "offset")):
        np.testing.assert_allclose(np.asarray(ours)[real], GOLDEN[f"cn_{name}"][real], **TOLERANCE)
    radius = jax.vmap(lambda box: centernet.radii(box, 32))(jnp.asarray(GOLDEN["cn_gt_boxes"]))
    np.testing.assert_array_equal(np.asarray(radius)[real], GOLDEN["cn_radius"][real])


def test_centernet_losses_and_decoding_match_the_golden():
    targets = golden_targets()
    logits, sizes, offsets = (jnp.asarray(GOLDEN[f"cn_{n}"]) for n in ("logits", "pred_wh", "pred_offset"))

    def loss(logits):
        parts = centernet.losses(centernet.Maps(logits, sizes, offsets), targets)
        return parts.heat, parts

    gradient, parts = jax.grad(loss, has_aux=True)(logits)
    for ours, name in zip(parts, ("loss_heat", "loss_wh", "loss_offset", "total"), strict=True):
        np.testing.assert_allclose(ours, GOLDEN[f"cn_{name}"], **TOLERANCE)
    np.testing.assert_allclose(gradient, GOLDEN["cn_grad_logits"], **TOLERANCE)
    found = centernet.decode(centernet.Maps(logits, sizes, offsets), 10)
    np.testing.assert_array_equal(found.labels, GOLDEN["cn_decode_labels"])
    np.testing.assert_allclose(found.scores, GOLDEN["cn_decode_scores"], **TOLERANCE)
    np.testing.assert_allclose(found.boxes, GOLDEN["cn_decode_boxes"], **TOLERANCE)


def test_decoding_the_targets_gives_the_boxes_back():
    wanted = jnp.asarray([[[0.1, 0.1, 0.3, 0.25], [0.5, 0.55, 0.9, 0.8], [0.0, 0.7, 0.2, 1.0]]])
    labels = jnp.asarray([[0, 2, 1]])
    targets = batch_targets(wanted, labels, 16, 3)
    rows, columns = targets.index[0].T
    sizes = jnp.zeros((1, 16, 16, 2)).at[0, rows, columns].set(targets.sizes[0])
    offsets = jnp.zeros((1, 16, 16, 2)).at[0, rows, columns].set(targets.offsets[0])
    logits = jnp.where(targets.heat == 1, 9.0, -9.0)
    found = centernet.decode(centernet.Maps(logits, sizes, offsets), 3)
    order = jnp.argsort(found.labels[0])
    np.testing.assert_allclose(found.boxes[0][order], wanted[0][jnp.argsort(labels[0])], atol=1e-6)


@pytest.mark.parametrize("head", ["centernet", "ssd"])
def test_an_image_without_objects_or_with_degenerate_boxes_gives_finite_losses_and_gradients(head):
    empty = jnp.asarray([[[0.2, 0.2, 0.2, 0.5], [0.0, 0.0, 0.0, 0.0]]])
    labels = jnp.asarray([[1, -1]])
    if head == "centernet":
        targets = batch_targets(empty, labels, 8, 3)
        assert not targets.real.any()

        def loss(x):
            return centernet.losses(centernet.Maps(x, x[..., :2], x[..., :2]), targets).total

        gradient = jax.grad(loss)(jnp.zeros((1, 8, 8, 3)))
    else:
        anchors = jnp.asarray(ssd.make_anchors((4,), (0.2, 0.4), ()), jnp.float32)
        match = jax.vmap(ssd.match, (None, 0, 0))(anchors, empty, labels)
        assert (match.objects == -1).all()

        def loss(x):
            parts = ssd.losses(x, x, match.classes, match.offsets)
            return parts.classification + parts.localization

        gradient = jax.grad(loss)(jnp.ones((1, len(anchors), 4)))
    assert jnp.isfinite(gradient).all()
