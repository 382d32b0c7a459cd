"""Times of several programs, a step of each in turn, so that a busy machine slows them alike."""

import statistics
import time
from collections.abc import Callable
from typing import Any


def time_in_turn(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, dict[str, Any]]:
    """Wall and CPU milliseconds of a step of each in turn; a first step of each is not counted but its loss kept."""
    rows: dict[str, dict[str, Any]] = {
        name: {"first_loss": run(), "wall_ms": [], "cpu_ms": []} for name, run in runs.items()
    }
    for _ in range(repeats):
        for name, run in runs.items():
            run()  # not timed: for a while, PyTorch's threads go on spinning beside whatever comes next
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            rows[name]["wall_ms"].append(1e3 * (time.perf_counter() - wall))
            rows[name]["cpu_ms"].append(1e3 * (time.process_time() - cpu))
    return rows


def to_reference(row: dict[str, Any], references: list[dict[str, Any]]) -> dict[str, float]:
    """Step time over that of the fastest reference: median over rounds, fastest steps, least CPU time."""
    best = min(references, key=lambda reference: statistics.median(reference["wall_ms"]))
    pairs = zip(row["wall_ms"], best["wall_ms"], strict=True)
    return {
        "median": statistics.median(own / other for own, other in pairs),
        "min": min(row["wall_ms"]) / min(min(reference["wall_ms"]) for reference in references),
        "cpu": min(row["cpu_ms"]) / min(min(reference["cpu_ms"]) for reference in references),
    }
