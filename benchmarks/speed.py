"""Speed of everything: step time, compile time and memory of each method beside its naive or reference form and beside
plain PyTorch, and how a step scales over devices and sizes. One table of it all.

    python -m benchmarks.speed [--only=vit_small,fer] [--quick] [--paper] [--tables] [--out=results]

Runs the benchmarks of this folder one after the other, each in a process of its own, and tabulates their JSON files:
`speed.md` on CPUs, `speed-<device>.md` on accelerators. With --only, the other rows are those of the files that are
there already; with --paper all names end in `_paper`. --tables measures nothing. PyTorch's column needs the extra
`bench` and is for CPUs, where the PyTorch forms run.
"""

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags

from benchmarks import scaling

DEVICES = (1, 2, 4, 8)
STEP_COLUMNS = (
    *("method", "step, ms", "compile, s", "temporaries, MiB"),
    *("to reference", "reference", "to PyTorch", "file"),
)
SCALING_COLUMNS = (
    *("method", "setting", "step, ms", "CPU, ms"),
    *("compile, s", "temporaries a device, MiB", "to the first"),
)


class Line(NamedTuple):
    """A row of the table: one form of a benchmark's report, and the forms that it is compared with."""

    method: str
    form: str
    reference: str = ""  # the naive form, or what the method's own work is to be seen against
    torch: str = ""  # PyTorch's form of the same work; the number of threads may stand behind it


class Benchmark(NamedTuple):
    """A benchmark of this folder; `small` is left out with --paper, `quick` is put in with --quick."""

    module: str
    lines: Sequence[Line]
    small: Sequence[str] = ("--quick",)
    quick: Sequence[str] = ("--quick", "--repeats=1")


TAUGHT = "soft_logits, teacher in the step"
BENCHMARKS = {
    "fewshot": Benchmark(
        "fewshot_speed",
        (
            Line("MAML", "maml", "maml, naive", "torch"),
            Line("CxGrad", "cxgrad", "maml"),
            Line("TAPL", "tapl", "maml, given labels on all images"),
        ),
        small=("--sizes=a",),
        quick=("--sizes=a", "--quick", "--repeats=1", "--forms=maml,cxgrad"),
    ),
    "anomaly": Benchmark(
        "anomaly_speed",
        (
            Line("CFA", "step, fast", "step, naive", "step, PyTorch"),
            Line("CFA, cached taps", "step, fast with cached taps", "step, naive", "step, PyTorch with cached taps"),
            Line("CFA, scoring", "score, fast", "score, naive", "score, PyTorch"),
        ),
        small=(),
    ),
    "vit_small": Benchmark(
        "vit_speed",
        (
            Line("ViT", "ViT", "", "torch ViT"),
            Line("SPT and LSA", "SL-ViT", "ViT", "torch SL-ViT"),
            Line("SPT and LSA, fused", "SL-ViT, SPT fused", "SL-ViT", "torch SL-ViT"),
        ),
    ),
    "distill": Benchmark(
        "distill_speed",
        (
            Line("KD-SVD", "sskd_svd, teacher in the step", TAUGHT),
            Line("MHGD", "mhgd, teacher in the step", TAUGHT),
            Line("IEP", "iepkt, teacher in the step", TAUGHT),
        ),
    ),
    "fer": Benchmark("fer_speed", (Line("ELIM", "ELIM", "plain"),)),
    "pruning": Benchmark(
        "pruning_speed",
        (
            Line("EKG, candidates from their prefix", "prefix", "one_by_one"),
            Line("EKG, candidates in a batch", "batched", "one_by_one"),
        ),
    ),
    "multitask": Benchmark("multitask_speed", (Line("TTE", "joint step", "one pass per task", "PyTorch"),), small=()),
}


class Session(NamedTuple):
    """How much is measured, on what, and where it is written."""

    quick: bool
    paper: bool
    out: Path
    backend: str
    kind: str  # of the devices
    count: int  # of the devices

    @property
    def suffix(self) -> str:
        """Of file names: nothing on CPUs."""
        return "" if self.backend == "cpu" else "-" + re.sub(r"[^a-z0-9]+", "-", self.kind.lower()).strip("-")

    def file(self, name: str, kind: str = "json") -> Path:
        """Where numbers or the page lie."""
        size = "_quick" if self.quick else "_paper" if self.paper else ""
        return self.out / f"{name}{self.suffix}{size}.{kind}"


def main(argv: list[str]) -> None:
    del argv
    chosen = flags.FLAGS
    unknown = [name for name in chosen.only if name not in BENCHMARKS]
    if unknown:
        raise app.UsageError(f"--only has {unknown[0]!r}, but takes {', '.join(BENCHMARKS)}.")
    session = Session(chosen.quick, chosen.paper, Path(chosen.out), *device())
    session.out.mkdir(parents=True, exist_ok=True)
    for family in () if chosen.tables else chosen.only or BENCHMARKS:
        measure(family, session)
    page = session.file("speed", "md")
    page.write_text(markdown(session))
    print(page.read_text())


def device() -> tuple[str, str, int]:
    """Backend, kind and number of devices; asked in another process, which gives their memory back."""
    program = "import jax, json; d = jax.devices(); print(json.dumps([d[0].platform, d[0].device_kind, len(d)]))"
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    backend, kind, count = json.loads(found.stdout.splitlines()[-1])
    return backend, kind, count


def measure(family: str, session: Session) -> None:
    """The family's benchmark, then its scaling: over devices with a fixed global batch, and over sizes on one."""
    benchmark = BENCHMARKS[family]
    size = benchmark.quick if session.quick else () if session.paper else benchmark.small
    run(benchmark.module, f"--out={session.file(benchmark.module)}", *size)
    found = scaling.FAMILIES[family]
    batch = {} if session.quick else {found.batch: found.batch_size}
    limit = 2 if session.quick else DEVICES[-1] if session.backend == "cpu" else session.count
    rows = [{"name": "devices", **scaled(family, batch, number, session)} for number in DEVICES if number <= limit]
    for name, fields in {} if session.quick else found.sizes.items():
        rows.append({"name": name, **scaled(family, fields, 1, session)})
    session.file(f"{family}_scaling").write_text(json.dumps(rows, indent=1) + "\n")


def scaled(family: str, fields: Mapping[str, Any], devices: int, session: Session) -> dict[str, Any]:
    """One measurement of `benchmarks.scaling` on so many devices, virtual ones on CPUs."""
    partial = session.out / "scaling.partial.json"
    if session.backend == "cpu":
        settings = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    else:
        settings = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(devices)))}
    quick = ("--quick", "--repeats=1") if session.quick else ()
    run("scaling", f"--family={family}", f"--fields={json.dumps(fields)}", f"--out={partial}", *quick, **settings)
    try:
        return json.loads(partial.read_text())
    finally:
        partial.unlink()


def run(module: str, *arguments: str, **settings: str) -> None:
    """One benchmark as a process of its own."""
    subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *arguments], check=True, env=os.environ | settings)


# --- the table ------------------------------------------------------------------------------------------------------


def markdown(session: Session) -> str:
    """All reports that are there as one page."""
    steps, scales, machines = [], [], {}
    for family, benchmark in BENCHMARKS.items():
        file = session.file(benchmark.module)
        if file.exists():
            report = json.loads(file.read_text())
            machines[benchmark.module] = report["machine"]
            steps += [row for line in benchmark.lines for row in step_rows(line, report, file.name)]
        file = session.file(f"{family}_scaling")
        if file.exists():
            scales += list(scaling_rows(scaling.FAMILIES[family], json.loads(file.read_text())))
    return "\n".join(
        [
            "# Speed",
            "",
            "Written by `python -m benchmarks.speed` from the files named below. A ratio is one of step times in one "
            "process, forms taking turns: below 1 is faster. \"Reference\" is the naive form, or the step without the "
            "method's own work.",
            "",
            *(f"* {module}: {described(machine)}" for module, machine in machines.items()),
            "",
            *table(STEP_COLUMNS, steps),
            "",
            "## One global batch on more devices, and larger problems on one",
            "",
            "On CPUs the devices are virtual and share the cores: the times say what splitting the work costs, not "
            "what it gains.",
            "",
            *table(SCALING_COLUMNS, scales),
            "",
        ]
    )  # fmt: skip


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def described(machine: Mapping[str, Any]) -> str:
    """The machine in words."""
    devices = machine["devices"]
    return (
        f"{machine['cores']} cores of {machine['cpu']}, {len(devices)} x {devices[0]}, load "
        f"{machine['load_average_1_min']:.1f} at the start, jax {machine['jax']}"
    )


def forms_of(report: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(what the setting is called, its rows by form) of a benchmark's report."""
    for name in ("sizes", "settings"):
        for setting, found in report.get(name, {}).items():
            yield f", {setting}", found.get("forms", found)
    if "forms" in report:
        yield "", report["forms"]


def step_rows(line: Line, report: Mapping[str, Any], file: str) -> Iterator[list[str]]:
    """A row for each setting that has the form."""
    for setting, forms in forms_of(report):
        if line.form not in forms:
            continue
        row = forms[line.form]
        theirs = [other for name, other in forms.items() if is_torch(line, name)]
        theirs = theirs if report["machine"]["backend"] == "cpu" else []
        against = [forms[line.reference]] if line.reference in forms else []
        yield [
            f"{line.method}{setting}",
            f"{milliseconds(row):.1f}",
            number(row.get("compile_s", row.get("first_call_s"))),
            number(row.get("temporaries_mib")),
            ratio(row, against),
            line.reference if against else "-",
            ratio(row, theirs),
            f"[{file}]({file})",
        ]


def is_torch(line: Line, name: str) -> bool:
    """Whether a row is PyTorch's of the same work, with whichever number of threads."""
    return bool(line.torch) and (name == line.torch or name.startswith(f"{line.torch}, "))


def scaling_rows(family: scaling.Family, rows: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """A row for each number of devices and each size; times relative to the first of their kind."""
    devices = [row for row in rows if row["name"] == "devices"]
    others = [row for row in rows if row["name"] != "devices"]
    for group in (devices, others):
        for row in group:
            batch = ", ".join(f"{name} {value}" for name, value in row["fields"].items()) or "smoke config"
            yield [
                family.what,
                f"devices: {row['devices']}, {batch}" if row["name"] == "devices" else row["name"],
                f"{milliseconds(row):.1f}",
                f"{row['cpu_ms']:.1f}",
                number(row["compile_s"]),
                number(row["temporaries_mib"]),
                ratio(row, group[:1]),
            ]


def milliseconds(row: Mapping[str, Any]) -> float:
    """The median step, whichever way a benchmark keeps it."""
    if "wall_ms" in row:
        return statistics.median(row["wall_ms"])
    return row["step_ms"]["median"] if "step_ms" in row else 1e3 * row["median_s"]


def ratio(row: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """Step time over that of the fastest of the others: the median of ratios of one round, or the ratio of medians."""
    if not others:
        return "-"
    best = min(others, key=milliseconds)
    if "wall_ms" in row and len(row["wall_ms"]) == len(best.get("wall_ms", ())):
        return f"{statistics.median(a / b for a, b in zip(row['wall_ms'], best['wall_ms'], strict=True)):.2f}"
    return f"{milliseconds(row) / milliseconds(best):.2f}"


def number(value: float | None) -> str:
    """One decimal, or a dash."""
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    flags.DEFINE_list("only", [], "Run these families alone; the others keep their last results.")
    flags.DEFINE_bool("quick", False, "Smallest sizes, one timed step: shows that everything runs.")
    flags.DEFINE_bool("paper", False, "The papers' sizes, for accelerators; on two cores a step takes seconds.")
    flags.DEFINE_bool("tables", False, "Measure nothing: write the table again from the files that are there.")
    flags.DEFINE_string("out", "results", "Folder of the tables.")
    app.run(main)
