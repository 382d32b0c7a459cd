"""Fills the bank before the first step: goes through the training images in batches that are split over the devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from anomaly import memory_bank, train
from anomaly.train import Recipe
from common import parallel
from common.experiment import TrainState

BANKS = ("running_mean", "nearest_ema")


class BankBuilder:
    """`refresh` of the experiment: bank of the untrained descriptor, never updated afterwards."""

    def __init__(
        self, recipe: Recipe, kind: str, count: int, batch_size: int, *, gamma_c: int, restarts: int, seed: int,
        coefficient: float,
    ):  # fmt: skip
        """`count`: training images to use. `coefficient`: β of `nearest_ema`, 0 for 1 / (i + 1)."""
        self.recipe, self.kind, self.count = recipe, kind, count
        self.gamma_c, self.restarts, self.seed, self.coefficient = gamma_c, restarts, seed, coefficient
        self.batch_size = -(-min(batch_size, count) // jax.device_count()) * jax.device_count()

    def __call__(self, state: TrainState, data: Any, step: int, key: jax.Array) -> TrainState:
        """The state with a filled bank."""
        del step
        bank = self._running_mean(state, data, key) if self.kind == "running_mean" else self._ema(state, data, key)
        return state.replace(model_state=state.model_state | {"bank": parallel.place(bank, parallel.replicated())})

    def _compress(self, rows: jax.Array) -> jax.Array | np.ndarray:
        return memory_bank.compress_bank(np.asarray(rows), self.gamma_c, self.seed, self.restarts)

    def _running_mean(self, state: TrainState, data: Any, key: jax.Array) -> jax.Array | np.ndarray:
        recipe = self.recipe

        def add(means, seen, backbone, data, indices, counted, key):
            indices, counted = parallel.constrain_batch((indices, counted))
            sums = train.sum_taps(recipe, backbone, data, indices, counted, key)
            number = jnp.sum(counted)
            new = tuple(memory_bank.running_mean(*pair, number) for pair in zip(means, [seen] * 3, sums, strict=True))
            return new, seen + number

        add = jax.jit(add, out_shardings=parallel.replicated())
        means = tuple(jnp.zeros(shape) for shape in recipe.tap_shapes)
        carry = parallel.place((means, np.float32(0)), parallel.replicated())
        for first in range(0, self.count, self.batch_size):
            places = np.arange(first, first + self.batch_size)
            indices = np.minimum(places, self.count - 1).astype(np.int32)
            batch = parallel.place((indices, (places < self.count).astype(np.float32)), parallel.batched())
            carry = add(*carry, state.model_state["backbone"], data, *batch, rng_of(key, first))
        rows = jax.jit(lambda params, means: train.bank_of_mean(recipe, params, means))(state.params, carry[0])
        return self._compress(rows)

    def _ema(self, state: TrainState, data: Any, key: jax.Array) -> jax.Array:
        recipe = self.recipe

        def first_image(state, data, key):
            pooled = train.gather(recipe, state.model_state["backbone"], data["train"], jnp.zeros(1, jnp.int32), key)
            return train.describe(recipe, state.params, pooled)[0]

        def add(state, data, bank, index, coefficient, key):
            return train.update_nearest_ema(recipe, state, data, bank, index, coefficient, key)

        add = jax.jit(add, out_shardings=parallel.replicated())
        rows = jax.jit(first_image, out_shardings=parallel.replicated())(state, data, rng_of(key, 0))
        bank = jnp.asarray(self._compress(rows))
        for image in range(1, self.count):
            coefficient = self.coefficient or 1 / (image + 1)
            bank = add(state, data, bank, np.array([image], np.int32), np.float32(coefficient), rng_of(key, image))
        return bank


def rng_of(key: jax.Array, place: int) -> jax.Array:
    """A key for each batch."""
    return jax.random.fold_in(key, place)
