"""Time of one train step of a family's Experiment on the devices that this process has, and what it costs to compile.

    python -m benchmarks.scaling --family=vit_small --out=vit.json --fields='{"batch_size": 128}'

Phases before the measured one are not trained, only initialised: a step takes as long with fresh weights. One process
measures one setting, since the number of devices is fixed when JAX starts; `benchmarks.speed` starts one after another.
"""

import importlib
import json
import statistics
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from absl import app, flags

from benchmarks.machine import machine, write_report
from common import huge_pages, parallel, phases, rng
from common.experiment import Experiment, TrainState
from common.step import Stepper, restore_accumulated, strongly_typed


class Family(NamedTuple):
    """What is measured of a family; the config is its embedded default."""

    config: str  # of <family>/configs
    what: str
    batch: str  # the field that sets the size of the global batch, and its value when devices are compared
    batch_size: int
    sizes: Mapping[str, Mapping[str, Any]]  # names and fields of settings to compare on one device
    phase: str = ""
    fields: Mapping[str, Any] = {}


SIDES = {f"{side} px": {"image_size": side} for side in (32, 64)}
BATCHES = {f"batch {size}": {"batch_size": size} for size in (32, 128)}
TEXTURES = {f"{side} px": {"textures.image_size": side, "resize": side, "crop": (side, side)} for side in (64, 128)}
FRAMES = {f"{people} people": {"batch_identities": people} for people in (8, 32)}
FAMILIES = {
    "fewshot": Family("cxgrad", "CxGrad", "tasks_per_step", 8, {f"{n} px": {"image_size": n} for n in (28, 56)}),
    "anomaly": Family("cfa", "CFA", "batch_size", 8, TEXTURES, fields={"weights": "random"}),
    "vit_small": Family("vit", "SL-ViT", "batch_size", 64, SIDES, fields={"spt": True, "lsa": True}),
    "distill": Family("mhgd", "MHGD, one graph of the whole batch", "batch_size", 64, BATCHES, "student"),
    "fer": Family("elim", "ELIM, matching in the whole batch", "batch_identities", 16, FRAMES),
    "pruning": Family("ekg", "EKG, training of the whole network", "train.batch_size", 64, SIDES, "dense"),
    "multitask": Family("tte", "TTE, joint step", "batch_size", 64, SIDES, "pretrain"),
}


def untrained(family: str, fields: Mapping[str, Any], quick: bool) -> tuple[Experiment, int]:
    """The experiment of the measured phase, after phases that were only initialised, and the run's seed."""
    found = FAMILIES[family]
    config = importlib.import_module(f"{family}.configs.{found.config}").get_config("smoke" if quick else "")
    config.update_from_flattened_dict({**found.fields, **fields})
    wiring = importlib.import_module(f"{family}.experiment")
    stages = phases.plan(config, getattr(wiring, "build", None), getattr(wiring, "phases", None))
    finished: dict[str, TrainState] = {}
    for stage in stages:
        own = phases.phase_config(config, stage)
        experiment = stage.build(own, finished)
        if stage.name == found.phase:
            return experiment, own.seed
        finished[stage.name] = initial_state(experiment, experiment.data, own.seed)
    raise ValueError(f"{family} has no phase {found.phase!r}.")


def initial_state(experiment: Experiment, data: Any, seed: int) -> TrainState:
    """The state before the first step, with its `refresh`."""
    init = jax.jit(lambda data, key: strongly_typed(experiment.init(data, key)), out_shardings=parallel.replicated())
    state = init(data, rng.stream(seed, "init"))
    if experiment.refresh is not None:
        state = experiment.refresh(state, data, 0, rng.stream(seed, "refresh", 0))
    return jax.device_put(state, parallel.replicated())


def measure(experiment: Experiment, seed: int, repeats: int) -> dict[str, Any]:
    """Wall and CPU milliseconds of a step, seconds of compiling it, and MiB of temporaries on each device."""
    data = parallel.place_data(experiment.data)
    state, accumulated = initial_state(experiment, data, seed), restore_accumulated({})
    stepper, wall_ms, cpu_ms = Stepper(experiment, data, seed), [], []
    for step in range(repeats + 2):  # the first compiles, the second warms up
        wall, cpu = time.perf_counter(), time.process_time()
        state, accumulated = jax.block_until_ready(stepper(state, accumulated, step))
        wall_ms.append(1e3 * (time.perf_counter() - wall))
        cpu_ms.append(1e3 * (time.process_time() - cpu))
    stepper.close()
    return {
        "devices": jax.device_count(),
        "step_ms": {"median": statistics.median(wall_ms[2:]), "min": min(wall_ms[2:])},
        "cpu_ms": min(cpu_ms[2:]),
        "compile_s": stepper.compile_seconds,
        "temporaries_mib": stepper.temporary_bytes / 2**20,
    }


def main(argv: list[str]) -> None:
    del argv
    chosen = flags.FLAGS
    jax.config.update("jax_enable_compilation_cache", False)
    given = json.loads(chosen.fields)
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    experiment, seed = untrained(chosen.family, fields, chosen.quick)
    report = {"family": chosen.family, "fields": fields, **measure(experiment, seed, chosen.repeats)}
    print(f"{chosen.family} {fields}, {report['devices']} devices: {report['step_ms']['median']:.1f} ms", flush=True)
    write_report(chosen.out, {"machine": machine(), **report})


if __name__ == "__main__":
    huge_pages.restart()
    flags.DEFINE_enum("family", "vit_small", list(FAMILIES), "Whose step.")
    flags.DEFINE_string("fields", "{}", "Changed config fields, as a JSON object.")
    flags.DEFINE_bool("quick", False, "The family's smoke config.")
    flags.DEFINE_integer("repeats", 5, "Timed steps.", lower_bound=1)
    flags.DEFINE_string("out", "", "JSON file to write.")
    app.run(main)
