"""Time of the augmentation of a batch: ours, Pillow image by image, and a training step of a small ViT beside it.

    python -m benchmarks.vit_small_augmentation

Times are CPU seconds of all threads, medians: on a machine that is not idle they are steadier than wall time. The ViT
has the spec's size (patch 4, width 192, 9 layers, 12 heads of 16, MLP 384) and only its blocks: their forward and
backward pass, no optimiser.
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.pillow_augmentation import augment_image
from vit_small.augmentation import Augmentation, augment
from vit_small.augmentation.policies import POLICIES

WIDTH, LAYERS, HEADS, MLP, PATCH_GRID = 192, 9, 12, 384, 8

_SIDE = flags.DEFINE_integer("side", 32, "Pixels of an image's side.", lower_bound=8)
_BATCH = flags.DEFINE_integer("batch", 128, "Images of a batch.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 20, "Timed calls of each.", lower_bound=1)


def vit_loss(params: dict[str, jax.Array], tokens: jax.Array) -> jax.Array:
    """A scalar after all blocks of a pre-norm ViT on tokens [B, N, D]."""

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)

    def block(x, layer):
        batch, length, _ = x.shape
        q, k, v = jnp.split((norm(x) @ layer["qkv"]).reshape(batch, length, 3 * HEADS, WIDTH // HEADS), 3, axis=2)
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 4, axis=-1)
        x = x + jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape) @ layer["out"]
        return x + jax.nn.gelu(norm(x) @ layer["up"], approximate=False) @ layer["down"], None

    return jnp.mean(jax.lax.scan(block, tokens, params)[0] ** 2)


def cpu_ms(call: Callable[[int], object], repeats: int) -> float:
    """Median of CPU milliseconds of `call(0)`, `call(1)` ..., after one call that is not counted."""
    call(repeats)
    times = []
    for i in range(repeats):
        started = time.process_time()
        jax.block_until_ready(call(i))
        times.append(1e3 * (time.process_time() - started))
    return statistics.median(times)


def vit_ms(batch: int, repeats: int) -> float:
    """Of one forward and backward pass of the blocks."""
    shapes = {"qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH), "up": (WIDTH, MLP), "down": (MLP, WIDTH)}
    params = {name: 0.05 * jax.random.normal(jax.random.key(0), (LAYERS, *shape)) for name, shape in shapes.items()}
    tokens = jax.random.normal(jax.random.key(1), (batch, PATCH_GRID**2 + 1, WIDTH))
    gradient = jax.jit(jax.grad(vit_loss))
    return cpu_ms(lambda _: gradient(params, tokens), repeats)


def main(argv: list[str]) -> None:
    del argv
    side, batch, repeats = _SIDE.value, _BATCH.value, _REPEATS.value
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch, side, side, 3)).astype(np.uint8)
    labels = jnp.asarray(random.integers(0, 10, batch).astype(np.int32))
    placed = jnp.asarray(images)
    step = vit_ms(batch, max(repeats // 4, 2))
    print(f"{batch} images of {side} px; forward and backward of the ViT's blocks: {step:.0f} ms of CPU time")
    for policy in POLICIES:
        spec = Augmentation(10, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), policy=policy)
        started = time.process_time()
        lowered = jax.jit(augment, static_argnames="spec").lower(placed, labels, jax.random.key(0), spec)
        program = lowered.compile()
        compile_s = time.process_time() - started
        ours = cpu_ms(lambda i, run=program: run(placed, labels, jax.random.key(i)), repeats)
        pillow = cpu_ms(
            lambda _, policy=policy: [augment_image(image, random, policy) for image in images], max(repeats // 4, 2)
        )
        print(
            f"{policy}: {ours:.1f} ms, compiled in {compile_s:.1f} s; {100 * ours / step:.1f} % of the ViT; "
            f"Pillow (flip, crop, policy): {pillow:.1f} ms, {pillow / ours:.1f} times as long"
        )


if __name__ == "__main__":
    app.run(main)
