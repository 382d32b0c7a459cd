"""Speed of the pruning search: candidates evaluated one by one, batched with shared kernels, and from a shared prefix.

    python -m benchmarks.pruning_speed --quick
    python -m benchmarks.pruning_speed --out=results/pruning_speed_paper.json

In full: ResNet-56 and the 320 validation images of the paper; quick: ResNet-20 and 64 images. Every gate has one
candidate, as in a step that marks them all. The three forms take turns in one process, so that a busy machine slows
them alike; ratios are medians over rounds of the two times of one round. Their logits must agree before anything is
timed. With --search a whole search to 45 % of the FLOPs is timed too.
"""

import functools
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.machine import machine, write_report
from common import huge_pages, writers
from pruning import complexity, search
from pruning.candidates import FORMS, Evaluator
from pruning.models import ARCHITECTURES
from pruning.models.network import Network

TOLERANCE = 1e-3  # between logits in float32

_OUT = flags.DEFINE_string("out", "", "JSON file to write.")
_QUICK = flags.DEFINE_bool("quick", False, "ResNet-20, 64 images.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed rounds.", lower_bound=1)
_CHUNK = flags.DEFINE_integer("chunk", 8, "Candidates at a time in the batched form.", lower_bound=1)
_SEARCH = flags.DEFINE_bool("search", False, "Time a whole search too.")


def problem(architecture: str, images: int) -> tuple[Any, Any, Any, Any]:
    """(graph, variables, normalised images, labels): random weights, the same in every process."""
    graph = ARCHITECTURES[architecture](10, 3)
    variables = jax.jit(Network(graph).init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    # Scales at the end of a branch start at 0: half of the network would be dead weight.
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.ones_like(leaf) if path[-1].key == "scale" else leaf, variables
    )
    random = np.random.default_rng(0)
    pixels = jax.device_put(random.standard_normal((images, 32, 32, 3)).astype(np.float32))
    return graph, variables, pixels, random.integers(0, 10, images).astype(np.int32)


def compare(graph: Any, variables: Any, images: Any) -> dict[str, Any]:
    """Seconds of each form for one candidate per gate, and how many times faster than one by one."""
    random = np.random.default_rng(1)
    masks = {gate.name: np.ones(gate.channels, np.float32) for gate in graph.gates}
    changes = [(gate.name, (random.random(gate.channels) < 0.8).astype(np.float32)) for gate in graph.gates]
    forms = {form: Evaluator(graph, form, 256, _CHUNK.value) for form in FORMS}
    calls = {form: functools.partial(one, variables, images, masks, changes) for form, one in forms.items()}
    first, compile_seconds = {}, {}
    for form, call in calls.items():
        started = time.perf_counter()
        first[form] = call()
        compile_seconds[form] = time.perf_counter() - started
    for form, logits in first.items():
        worst = float(np.abs(logits - first["one_by_one"]).max())
        if worst > TOLERANCE:
            raise SystemExit(f"{form} differs from one_by_one by {worst:.2g}: nothing is timed.")
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(_REPEATS.value):
        for form, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[form].append(time.perf_counter() - started)
    faster = {
        form: statistics.median(a / b for a, b in zip(seconds["one_by_one"], values, strict=True))
        for form, values in seconds.items()
    }
    rows = {
        form: {
            "first_call_s": compile_seconds[form],
            "median_s": statistics.median(values),
            "times_faster": faster[form],
        }
        for form, values in seconds.items()
    }
    return {"candidates": len(changes), "images": len(images), "forms": rows, "fastest": max(faster, key=faster.get)}  # pyright: ignore


def whole_search(graph: Any, variables: Any, images: Any, labels: Any) -> dict[str, float]:
    """Time of a search to 45 % of the FLOPs."""
    flops = functools.partial(complexity.flops_of, graph, 32)
    plan = search.Search(graph, search.Settings(0.45), flops, Evaluator(graph, "automatic", 256, _CHUNK.value))
    progress = search.begin(plan, search.blank(graph, len(labels), plan.settings), variables, images, labels)
    started, steps, candidates = time.perf_counter(), 0, 0
    while search.ratio(plan, progress.keeps) > plan.settings.target:
        progress, decision = search.greedy_step(plan, progress, variables, images, labels, jax.random.key(0))
        steps, candidates = steps + 1, candidates + len(decision.candidates)
    return {"seconds": time.perf_counter() - started, "steps": steps, "candidates": candidates}


def main(argv: list[str]) -> None:
    del argv
    architecture, count = ("resnet20", 64) if _QUICK.value else ("resnet56", 320)
    graph, variables, images, labels = problem(architecture, count)
    result: dict[str, Any] = {"machine": machine(), "architecture": architecture, **compare(graph, variables, images)}
    rows = [(form, f"{row['first_call_s']:.1f}", f"{row['median_s']:.2f}", f"{row['times_faster']:.2f}")
            for form, row in result["forms"].items()]  # fmt: skip
    writers.table(f"{architecture}, {count} images", ["form", "first call, s", "median, s", "times faster"], rows)
    if _SEARCH.value:
        result["search"] = whole_search(graph, variables, images, labels)
        print(json.dumps(result["search"]))
    write_report(_OUT.value, result)


if __name__ == "__main__":
    huge_pages.restart()
    app.run(main)
