"""Times of several programs, a step of each in turn, so that a busy machine slows them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def compile_timed(jitted: Any, *arguments: Any) -> tuple[Any, dict[str, float]]:
    """The compiled program of a jitted function; seconds (and CPU seconds) that took, and MiB of its temporaries."""
    start, cpu_start = time.perf_counter(), time.process_time()
    compiled = jitted.lower(*arguments).compile()
    return compiled, {
        "compile_s": time.perf_counter() - start,
        "compile_cpu_s": time.process_time() - cpu_start,
        # None on some backends
        "temporaries_mib": getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0) / 2**20,
    }


def time_in_turn(runs: Mapping[str, Callable[[], Any]], repeats: int | Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Wall and CPU milliseconds of a step of each in turn; a first step of each is not counted but its loss kept.

    `repeats`: timed steps, of all or by name.
    """
    rounds = {name: repeats if isinstance(repeats, int) else repeats[name] for name in runs}
    rows: dict[str, dict[str, Any]] = {
        name: {"first_loss": run(), "wall_ms": [], "cpu_ms": []} for name, run in runs.items()
    }
    for number in range(max(rounds.values())):
        for name, run in runs.items():
            if number >= rounds[name]:
                continue
            run()  # not timed: for a while, PyTorch's threads go on spinning beside whatever comes next
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            rows[name]["wall_ms"].append(1e3 * (time.perf_counter() - wall))
            rows[name]["cpu_ms"].append(1e3 * (time.process_time() - cpu))
    return rows


def summarised(rows: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each: median and fastest wall time of a step, and its least CPU time, in milliseconds."""
    return {
        name: {
            "step_ms": {"median": statistics.median(row["wall_ms"]), "min": min(row["wall_ms"])},
            "cpu_ms": min(row["cpu_ms"]),
        }
        for name, row in rows.items()
    }


def to_reference(row: dict[str, Any], references: list[dict[str, Any]]) -> dict[str, float]:
    """Step time over that of the fastest reference: median over rounds, fastest steps, least CPU time."""
    best = min(references, key=lambda reference: statistics.median(reference["wall_ms"]))
    pairs = zip(row["wall_ms"], best["wall_ms"], strict=True)
    return {
        "median": statistics.median(own / other for own, other in pairs),
        "min": min(row["wall_ms"]) / min(min(reference["wall_ms"]) for reference in references),
        "cpu": min(row["cpu_ms"]) / min(min(reference["cpu_ms"]) for reference in references),
    }
