"""A long run watched from outside: memory, open files and compilations must not grow.

    python -m benchmarks.soak --minutes=30 --out=results/soak.json

Trains CxGrad at smoke size through its own command line, with evaluations and checkpoints every few seconds, and ends
it by SIGTERM. Samples of Linux's /proc are fitted by straight lines over the second half, when caches are warm.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.machine import machine, write_report

ROOT = Path(__file__).parents[1]
FIELDS = {
    "num_steps": 10**9,
    "log_every_steps": 20,
    "eval_every_steps": 100,
    "save_every_steps": 100,
    "eval_episodes": 20,
    "tensorboard": False,
}
SAMPLES = 200


def command(folder: str) -> list[str]:
    settings = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    config = "--config=fewshot/configs/cxgrad.py:smoke"
    return [sys.executable, "-m", "fewshot.main", config, *settings, f"--workdir={folder}"]


def sample(pid: int, log: Path, folder: str) -> dict[str, int]:
    """What a process holds now, and what it has done so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    lines = (Path(folder) / "metrics.jsonl").read_text().count("\n") if Path(folder, "metrics.jsonl").exists() else 0
    return {
        "memory_kb": int(re.findall(r"VmRSS:\s+(\d+)", status)[0]),
        "threads": int(re.findall(r"Threads:\s+(\d+)", status)[0]),
        "open_files": len(os.listdir(f"/proc/{pid}/fd")),
        "compilations": log.read_text().count("Compiling jit("),
        "lines_of_metrics": lines,
    }


def watch(minutes: float) -> dict[str, Any]:
    """Samples of a run over `minutes`, and how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        log, run = Path(folder) / "log", f"{folder}/run"
        told = {"JAX_LOG_COMPILES": "1", "JAX_LOGGING_LEVEL": "WARNING"}
        with log.open("w") as stream:
            process = subprocess.Popen(command(run), cwd=ROOT, env=os.environ | told, stdout=stream, stderr=stream)
        started, samples = time.monotonic(), []
        while (passed := time.monotonic() - started) < 60 * minutes and process.poll() is None:
            samples.append({"seconds": round(passed, 1), **sample(process.pid, log, run)})
            time.sleep(60 * minutes / SAMPLES)
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=120)
        return {
            "exit_code": code,
            "seconds_to_stop": time.monotonic() - asked,
            "saved": re.findall(r"saved at step (\d+)", log.read_text()),
            "samples": samples,
        }


def slopes(samples: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Of each quantity: growth an hour over the second half, first and last value of it."""
    half = samples[len(samples) // 2 :]
    hours = np.array([row["seconds"] for row in half]) / 3600
    found = {}
    for name in ("memory_kb", "threads", "open_files", "compilations", "lines_of_metrics"):
        values = np.array([row[name] for row in half], float)
        found[name] = {"per_hour": float(np.polyfit(hours, values, 1)[0]), "first": values[0], "last": values[-1]}
    return found


def main(argv: list[str]) -> None:
    del argv
    minutes = flags.FLAGS.minutes
    watched = watch(minutes)
    growth = slopes(watched["samples"])
    for name, line in growth.items():
        print(f"{name}: {line['first']:.0f} to {line['last']:.0f} in the second half, {line['per_hour']:+.1f} an hour")
    print(f"Stopped in {watched['seconds_to_stop']:.1f} s with exit code {watched['exit_code']}.")
    write_report(flags.FLAGS.out, {"machine": machine(), "minutes": minutes, "growth": growth, **watched})


if __name__ == "__main__":
    flags.DEFINE_float("minutes", 30.0, "Length of the run.", lower_bound=0.5)
    flags.DEFINE_string("out", "", "JSON file for the report.")
    app.run(main)
