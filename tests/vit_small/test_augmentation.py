"""The recipe around AutoAugment: the official code's numbers, probabilities, devices, and what is refused."""

import dataclasses
import os
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.errors import UserError
from tests.vit_small.official import golden
from vit_small.augmentation import Augmentation, augment, erasing, mixing

CIFAR10 = Augmentation(10, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
NOTHING = dataclasses.replace(
    CIFAR10, flip=0.0, crop_padding=0, policy="none", erase=0.0, cutmix=0.0, mixup=0.0, label_smoothing=0.0
)
DRAWS = 4000

compiled = jax.jit(augment, static_argnames="spec")


def batch(size=16, side=12, channels=3, seed=0):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (size, side, side, channels)).astype(np.uint8)
    return jnp.asarray(images), jnp.asarray(random.integers(0, 10, size).astype(np.int32))


def drawn_mix(mode, share, center=(0, 0), partner=(1, 0)):
    return mixing.Mix(jnp.asarray(mode), jnp.asarray(share), jnp.asarray(center), jnp.asarray(partner))


def within(count, draws, probability, sigmas=5):
    return abs(count - draws * probability) <= sigmas * np.sqrt(draws * probability * (1 - probability))


def test_cutmix_boxes_equal_official(float64):
    rows = golden("augmentation")["cutmix_box"]
    for side in (int(side) for side in np.unique(rows[:, 0])):
        cases = rows[rows[:, 0] == side]
        box, kept = jax.vmap(lambda share, center, side=side: mixing.cutmix_box(side, side, share, center))(
            jnp.asarray(cases[:, 1]), jnp.asarray(cases[:, 2:4], jnp.int32)
        )
        np.testing.assert_array_equal(box, cases[:, 4:8])
        np.testing.assert_allclose(kept, cases[:, 8], rtol=0, atol=1e-12)


def test_cutmix_boxes_in_float32_equal_official():
    rows = golden("augmentation")["cutmix_box"]
    for side, share, row, column, *box, kept in rows:
        ours = mixing.cutmix_box(int(side), int(side), jnp.float32(share), jnp.array([int(row), int(column)]))
        np.testing.assert_array_equal(ours[0], box)
        np.testing.assert_allclose(ours[1], kept, atol=1e-6)


def test_soft_labels_give_the_official_loss_and_gradient(float64):
    arrays = golden("augmentation").under("loss.")
    first, second = (mixing.smooth_labels(jnp.asarray(arrays[name]), 10, 0.1) for name in ("ya", "yb"))

    def loss(logits, targets):
        return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1))

    mixed = arrays["lam"] * first + (1 - arrays["lam"]) * second
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(arrays["logits"]), mixed)
    np.testing.assert_allclose(value, arrays["smoothed_mixed"], rtol=1e-6)
    np.testing.assert_allclose(loss(jnp.asarray(arrays["logits"]), first), arrays["smoothed_plain"], rtol=1e-6)
    np.testing.assert_allclose(gradient, arrays["grad_logits"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("step", range(6))
def test_mixed_batches_equal_official(step):
    arrays = golden("train_steps")
    images = np.random.default_rng(zlib.crc32(f"train/x{step}".encode())).standard_normal((6, 3, 16, 16))
    images = jnp.asarray(np.moveaxis(images, 1, -1), jnp.float32)
    targets = mixing.smooth_labels(jnp.asarray(arrays["labels"][step]), 5, 0.1)
    mode = {"none": mixing.NONE, "cutmix": mixing.CUTMIX, "mixup": mixing.MIXUP}[arrays["modes"][step]]
    share = jnp.float32(arrays["beta_draw"][step])
    drawn = mixing.Mix(jnp.asarray(mode), share, jnp.asarray(arrays["centre"][step]), jnp.asarray(arrays["perm"][step]))
    mixed, soft = mixing.mix(images, targets, drawn)
    expected = arrays["lam"][step] * targets + (1 - arrays["lam"][step]) * targets[arrays["perm"][step]]
    np.testing.assert_allclose(soft, expected, atol=1e-6)
    if f"mixed_x.{step}" in arrays:
        np.testing.assert_allclose(np.moveaxis(mixed, -1, 1), arrays[f"mixed_x.{step}"], rtol=0, atol=1e-6)
    if mode == mixing.CUTMIX:
        box, _ = mixing.cutmix_box(16, 16, share, drawn.center)
        np.testing.assert_array_equal(box, arrays["box"][step])
    if mode == mixing.NONE:
        np.testing.assert_array_equal(mixed, images)


def test_erasing_equals_official():
    arrays = golden("augmentation")
    side, area, aspect, tall, wide, fits = arrays["erasing_geometry"].T
    ours = [
        np.asarray(erasing.rectangle_size(int(s), int(s), *jnp.float32(draw)))
        for s, *draw in zip(side, area, aspect, strict=True)
    ]
    np.testing.assert_array_equal(np.array(ours), np.stack([tall, wide, fits], axis=1))

    coin, area, aspect, top, left = arrays["erasing.draws"]
    assert coin < CIFAR10.erase
    tall, wide, _ = erasing.rectangle_size(32, 32, jnp.float32(area), jnp.float32(aspect))
    rectangle = erasing.Rectangle(*(jnp.asarray([int(value)]) for value in (top, left, tall, wide)))
    erased = erasing.erase(jnp.moveaxis(arrays["erasing.x"], 0, -1)[None], rectangle, CIFAR10.mean)
    np.testing.assert_allclose(np.moveaxis(erased[0], -1, 0), arrays["erasing.y"], rtol=0, atol=1e-7)


def test_nothing_but_normalising_is_left_without_augmentation():
    images, labels = batch()
    pixels, targets = compiled(images, labels, jax.random.key(0), NOTHING)
    np.testing.assert_allclose(pixels, (np.asarray(images) / 255 - NOTHING.mean) / NOTHING.std, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(targets, jax.nn.one_hot(labels, 10))


@pytest.mark.parametrize(("policy", "channels"), [("cifar10", 3), ("svhn", 3), ("imagenet", 3), ("cifar10", 1)])
def test_the_whole_recipe(policy, channels):
    images, labels = batch(channels=channels)
    spec = dataclasses.replace(CIFAR10, policy=policy)
    if channels == 1:
        spec = dataclasses.replace(spec, mean=(0.5,), std=(0.25,))
    pixels, targets = compiled(images, labels, jax.random.key(0), spec)
    again, _ = compiled(images, labels, jax.random.key(0), spec)
    other, _ = compiled(images, labels, jax.random.key(1), spec)
    assert pixels.dtype == jnp.float32
    assert pixels.shape == images.shape
    np.testing.assert_array_equal(pixels, again)
    assert not np.array_equal(pixels, other)
    for step in range(8):
        _, targets = compiled(images, labels, jax.random.key(step), spec)
        np.testing.assert_allclose(targets.sum(axis=-1), 1, rtol=1e-6)
        assert (targets >= 0.1 / 10 - 1e-7).all()


def test_an_image_is_treated_alike_in_a_batch_of_any_size():
    images, labels = batch()
    spec = dataclasses.replace(CIFAR10, cutmix=0.0, mixup=0.0)
    pixels, _ = compiled(images, labels, jax.random.key(0), spec)
    first, _ = compiled(images[:8], labels[:8], jax.random.key(0), spec)
    np.testing.assert_array_equal(pixels[:8], first)


def test_images_of_a_batch_are_treated_differently():
    images = jnp.broadcast_to(batch()[0][:1], (16, 12, 12, 3))
    spec = dataclasses.replace(CIFAR10, cutmix=0.0, mixup=0.0)
    pixels, _ = compiled(images, jnp.zeros(16, jnp.int32), jax.random.key(0), spec)
    assert len(np.unique(np.asarray(pixels).reshape(16, -1), axis=0)) == 16


def test_flips_and_crops_happen_as_often_as_they_should():
    side, padding = 5, 1
    images = jnp.broadcast_to(
        jnp.arange(1, 1 + side * side, dtype=jnp.uint8).reshape(1, side, side, 1), (DRAWS, side, side, 1)
    )
    spec = dataclasses.replace(NOTHING, mean=(0.0,), std=(1 / 255,), flip=0.3, crop_padding=padding)
    pixels, _ = compiled(images, jnp.zeros(DRAWS, jnp.int32), jax.random.key(5), spec)
    middle = np.round(np.asarray(pixels)[:, 2, 1:4, 0]).astype(int)
    assert within((middle[:, 0] > middle[:, 2]).sum(), DRAWS, 0.3)
    row, column = (middle[:, 1] - 1) // side, (middle[:, 1] - 1) % side
    for first in range(3):
        assert within((row == 1 + first).sum(), DRAWS, 1 / 3)
        assert within((column == 1 + first).sum(), DRAWS, 1 / 3)


def test_erasing_happens_as_often_and_as_large_as_it_should():
    keys = jax.random.split(jax.random.key(6), DRAWS)
    range_of = (CIFAR10.erase_area, CIFAR10.erase_aspect, CIFAR10.erase_attempts)
    top, left, tall, wide = map(np.asarray, erasing.draw_rectangles(keys, 32, 48, 0.25, *range_of))
    happened = tall > 0
    assert within(happened.sum(), DRAWS, 0.25)
    assert (top + tall <= 32).all()
    assert (left + wide <= 48).all()
    area = (tall * wide)[happened] / (32 * 48)
    assert 0.015 < area.min() < area.max() < 0.42
    assert np.unique(top[happened]).size > 20


@pytest.mark.parametrize(("fill", "value"), [("mean", CIFAR10.mean), ("zero", (0, 0, 0))])
def test_what_is_erased_is_painted(fill, value):
    images, labels = batch(side=16)
    spec = dataclasses.replace(NOTHING, erase=1.0, erase_fill=fill)
    pixels = np.asarray(compiled(images, labels, jax.random.key(0), spec)[0])
    plain = np.asarray(compiled(images, labels, jax.random.key(0), NOTHING)[0])
    changed = (np.abs(pixels - plain) > 1e-4).any(axis=-1)
    assert changed.any(axis=(1, 2)).all()
    np.testing.assert_allclose(pixels[changed], np.broadcast_to(value, pixels[changed].shape), rtol=1e-6)


def test_noise_is_painted():
    images, labels = batch(size=64, side=16)
    spec = dataclasses.replace(NOTHING, erase=1.0, erase_fill="noise")
    pixels, plain = (np.asarray(compiled(images, labels, jax.random.key(0), s)[0]) for s in (spec, NOTHING))
    noise = pixels[np.abs(pixels - plain) > 1e-4]
    assert noise.size > 1000
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 5 / np.sqrt(noise.size)


def test_mixing_happens_as_often_as_it_should():
    keys = jax.random.split(jax.random.key(7), DRAWS)
    drawn = jax.vmap(lambda key: mixing.draw_mix(key, 8, 10, 20, 0.25, 0.35, 1.0))(keys)
    for mode, probability in ((mixing.CUTMIX, 0.25), (mixing.MIXUP, 0.35), (mixing.NONE, 0.4)):
        assert within((np.asarray(drawn.mode) == mode).sum(), DRAWS, probability)
    share, center = np.asarray(drawn.share), np.asarray(drawn.center)
    assert within((share < 0.3).sum(), DRAWS, 0.3)
    assert center.min(axis=0).tolist() == [0, 0]
    assert center.max(axis=0).tolist() == [9, 19]
    assert (np.sort(drawn.partner, axis=1) == np.arange(8)).all()


def test_share_follows_the_beta_distribution():
    keys = jax.random.split(jax.random.key(8), DRAWS)
    share = np.asarray(jax.vmap(lambda key: mixing.draw_mix(key, 8, 8, 8, 0.5, 0.5, 0.2).share)(keys))
    assert abs(share.mean() - 0.5) < 0.03
    assert share.var() == pytest.approx(0.25 / 1.4, abs=0.01)  # of Beta(a, a): 1 / (4 (2 a + 1))


@pytest.mark.parametrize("share", [0.0, 0.13, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("center", [(0, 0), (8, 12), (15, 23)])
def test_cutmix_label_share_is_the_area_that_is_kept(share, center):
    images = jnp.stack([jnp.zeros((16, 24, 1)), jnp.ones((16, 24, 1))])
    mixed, targets = mixing.mix(images, jnp.eye(2), drawn_mix(mixing.CUTMIX, share, center))
    assert float(targets[0, 0]) == pytest.approx(1 - float(mixed[0].mean()), abs=1e-6)
    assert float(targets[1, 1]) == pytest.approx(float(mixed[1].mean()), abs=1e-6)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    if center == (8, 12):  # the box fits: the share is the one drawn, but for whole pixels
        assert float(targets[0, 0]) == pytest.approx(share, abs=0.12)


def test_mixup_mixes_images_as_labels():
    images = jnp.stack([jnp.zeros((4, 4, 1)), jnp.ones((4, 4, 1))])
    mixed, targets = mixing.mix(images, jnp.eye(2), drawn_mix(mixing.MIXUP, 0.3))
    np.testing.assert_allclose(mixed[:, 0, 0, 0], [0.7, 0.3], rtol=1e-6)
    np.testing.assert_allclose(targets, [[0.3, 0.7], [0.7, 0.3]], rtol=1e-6)


ON_EIGHT = """
import sys
import jax, numpy as np
from common import parallel
from tests.vit_small.test_augmentation import CIFAR10, augment, batch
assert jax.device_count() == 8
images, labels = batch()
def split(images, labels, key):
    return augment(*parallel.constrain_batch((images, labels)), key, CIFAR10)
program = jax.jit(split, out_shardings=parallel.batched())
for seed in range(4):
    pixels, targets = program(images, labels, jax.random.key(seed))
    assert not pixels.is_fully_replicated
    np.savez(f"{sys.argv[1]}/{seed}.npz", pixels=pixels, targets=targets)
"""


def test_eight_devices_equal_one(tmp_path):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-c", ON_EIGHT, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    images, labels = batch()
    for seed in range(4):
        pixels, targets = compiled(images, labels, jax.random.key(seed), CIFAR10)
        with np.load(tmp_path / f"{seed}.npz") as eight:
            np.testing.assert_allclose(eight["pixels"], pixels, rtol=0, atol=1e-6)
            np.testing.assert_allclose(eight["targets"], targets, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "cifar"}, r"policy is 'cifar', but must be one of .*\(did you mean 'cifar10'\?\)"),
        ({"erase_fill": "black"}, "erase_fill is 'black', but must be one of mean, zero, noise"),
        ({"flip": 1.5}, r"flip is 1.5, but must lie in 0\.\.1"),
        ({"cutmix": 0.8, "mixup": 0.4}, "mixup is 0.4, but must be at most 1 - cutmix, 0.2"),
        ({"num_classes": 1}, "num_classes is 1, but must be at least 2"),
        ({"mean": (0.5, 0.5)}, r"mean is \(0.5, 0.5\), but must have 1 number"),
        ({"std": (0.5,)}, "std is .* but must have 3 numbers above 0"),
        ({"std": (0.5, 0.0, 0.5)}, "std is .* but must have 3 numbers above 0"),
        ({"crop_padding": -1}, "crop_padding is -1, but must not be negative"),
        ({"mix_alpha": 0.0}, "mix_alpha is 0.0, but must be above 0"),
        ({"erase_attempts": 0}, "erase_attempts is 0"),
        ({"erase_area": (0.4, 0.02)}, "erase_area is .* must be a range"),
        ({"erase_aspect": (0.0, 1.0)}, "erase_aspect is .* must be a range above 0"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
    ],
)
def test_bad_field_is_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CIFAR10, **changes)


def test_images_that_do_not_fit_are_refused():
    images, labels = batch(channels=1)
    with pytest.raises(UserError, match="images have 1 channels, but the augmentation's mean has 3 numbers"):
        augment(images, labels, jax.random.key(0), CIFAR10)
    images, labels = batch(side=2)
    with pytest.raises(UserError, match="2 x 2 pixels are too small"):
        augment(images, labels, jax.random.key(0), CIFAR10)
