"""What a measurement depends on besides the code, and where it is written."""

import json
import os
import platform
import resource
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    packages = [name for name in ("jax", "jaxlib", "flax", "torch") if find_spec(name) is not None]
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "load_average_1_min": os.getloadavg()[0],
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def peak_memory() -> dict[str, float]:
    """The most memory that this process has had, in MiB; of an accelerator its own too."""
    scale = 2**20 if sys.platform == "darwin" else 2**10
    found = {"peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale}
    on_device = jax.local_devices()[0].memory_stats() or {}  # None on CPUs
    if "peak_bytes_in_use" in on_device:
        found["peak_device_mib"] = on_device["peak_bytes_in_use"] / 2**20
    return found


def write_report(out: str, report: dict[str, Any]) -> None:
    """A JSON file, in folders that are made where they are missing; nothing where `out` is empty."""
    if out:
        report = {**report, **peak_memory()}
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(report, indent=1) + "\n")
