"""Images per second of the whole scoring function, from uint8 pixels to maps, on one device."""

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from anomaly import train
from common.experiment import TrainState

SECONDS, CALLS = 1.0, 10  # timed per batch size, whichever is reached first


def measure(recipe: train.Recipe, state: TrainState, batch_sizes: Sequence[int]) -> dict[str, Any]:
    """{"device": its name, "images_per_s": {batch size: rate}}; medians of warm calls, compilation not counted.

    Every call sends the pixels to the device and waits for maps and scores. Their values do not matter for the time.
    """
    device = jax.local_devices()[0]
    params, model_state = jax.device_put(jax.device_get((state.params, state.model_state)), device)
    score = jax.jit(lambda params, model_state, images: train.score_images(recipe, params, model_state, images))
    rates = {}
    for size in batch_sizes:
        images = np.random.default_rng(0).integers(0, 256, (size, *recipe.size, 3), np.uint8)
        jax.device_get(score(params, model_state, images))  # compiles
        jax.device_get(score(params, model_state, images))  # warms up
        seconds: list[float] = []
        while len(seconds) < CALLS and sum(seconds) < SECONDS:
            start = time.perf_counter()
            jax.device_get(score(params, model_state, images))
            seconds.append(time.perf_counter() - start)
        rates[size] = size / statistics.median(seconds)
    return {"device": device.device_kind, "images_per_s": rates}


def write(folder: Path, measured: dict[str, Any]) -> None:
    """throughput.json beside results.json, which holds only what another run of the same config would give again."""
    (folder / "throughput.json").write_text(json.dumps(measured, indent=2) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """Columns of a table: images/s at batch 1 and at the best batch size, and the device; {} if not measured."""
    file = folder / "throughput.json"
    return columns(json.loads(file.read_text())) if file.exists() else {}


def columns(measured: dict[str, Any]) -> dict[str, Any]:
    rates = {int(size): rate for size, rate in measured["images_per_s"].items()}
    found = {"images_per_s_batch_1": rates[1]} if 1 in rates else {}
    return found | {"images_per_s_best_batch": max(rates.values()), "device": measured["device"]}


def sentence(measured: dict[str, Any]) -> str:
    """What was measured, for the console."""
    rates = measured["images_per_s"]
    found = ", ".join(f"{rate:.1f} in batches of {size}" for size, rate in rates.items())
    return f"Scoring on {measured['device']}, images/s: {found}."
