"""Where metrics go: `metrics.jsonl` (the truth), the terminal, and optionally TensorBoard and Weights & Biases."""

import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from io import TextIOBase
from pathlib import Path
from typing import IO, Any, Protocol, SupportsFloat, cast, runtime_checkable

import rich.console
import rich.progress
import rich.table
import rich.text
from rich import box

from common.errors import UserError

Scalars = Mapping[str, SupportsFloat]
_REDRAW_SECONDS = 0.1


@runtime_checkable
class Writer(Protocol):
    """What the training loop asks of every destination of metrics."""

    def write(self, step: int, kind: str, values: Scalars, wall: Scalars | None = None) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JsonlWriter:
    """Append one strict-JSON line per call to a file.

    A line holds "step", "kind" ("train", "evaluate" or "final"), the values sorted by name, and the wall-time values
    with the prefix "wall_", so that two runs can be compared without them. Non-finite numbers are the strings "nan",
    "inf" and "-inf", which `float` reads.
    """

    def __init__(self, path: Path):
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: a line is one write, so a killed process leaves whole lines behind.
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - closed in close()

    def write(self, step: int, kind: str, values: Scalars, wall: Scalars | None = None) -> None:
        """Append one line.

        Raises:
          UserError: a metric named "step" or "kind", or with the prefix "wall_".
        """
        line: dict[str, object] = {"step": int(step), "kind": kind}
        for name in sorted(values):
            if name in line or name.startswith("wall_"):
                raise UserError(f"metric {name!r} of {self._path} needs another name: this one is reserved.")
            line[name] = _json_number(values[name])
        times = {f"wall_{name.removeprefix('wall_')}": number for name, number in (wall or {}).items()}
        line |= {name: _json_number(times[name]) for name in sorted(times)}
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")

    def flush(self) -> None:
        """Return when everything written so far is on the disk."""
        os.fsync(self._file.fileno())

    def size(self) -> int:
        """Bytes written so far, for `truncate`."""
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        if not self._file.closed:
            self.flush()
            self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file in order; a half-written last line is left out.

    Raises:
      UserError: the file does not exist, or a whole line is not valid JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no metrics file {path}; a run writes it into its workdir.")
    lines = []
    for number, raw in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not raw.endswith(b"\n"):
            break
        try:
            line = json.loads(raw, parse_constant=_refuse_constant)
        except ValueError as error:
            raise UserError(f"line {number} of {path} is not valid JSON ({error}); remove or repair it.") from error
        if not isinstance(line, dict) or "step" not in line:
            raise UserError(f"line {number} of {path} holds no step; remove or repair it.")
        lines.append(line)
    return lines


def truncate(path: Path, size: int) -> None:
    """Cut a metrics file to its first `size` bytes, what it held at a checkpoint; a missing file is left missing.

    Raises:
      UserError: the file is shorter than that, so lines are lost.
    """
    path = Path(path)
    found = path.stat().st_size if path.exists() else 0
    if found < size:
        raise UserError(
            f"{path} has {found} bytes, but the checkpoint to resume from was made when it had {size}; "
            "restore the file, or continue in another --workdir with --config.resume_from."
        )
    if found > size:
        os.truncate(path, size)


def without_wall(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines without their wall-time values: equal for two runs that computed the same."""
    return [{name: value for name, value in line.items() if not name.startswith("wall_")} for line in lines]


class TensorBoardWriter:
    """Write scalars named "<kind>/<name>" as TensorBoard events; needs tensorboardX."""

    def __init__(self, directory: Path, start_step: int = 0):
        from tensorboardX import SummaryWriter

        # On resume the events that will be written again are hidden. Files are named by the second: the suffix keeps
        # a quick resume from overwriting the first file.
        purge_step = start_step + 1 if start_step else None
        self._writer = SummaryWriter(str(directory), purge_step=purge_step, filename_suffix=f".{start_step}")

    def write(self, step: int, kind: str, values: Scalars, wall: Scalars | None = None) -> None:
        for name, value in _scalars(kind, values, wall).items():
            self._writer.add_scalar(name, value, int(step))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    """Log scalars named "<kind>/<name>" to Weights & Biases; needs wandb.

    Without WANDB_MODE or WANDB_API_KEY in the environment the run is recorded offline, to be sent by `wandb sync`: a
    training run never waits for a log-in or a network.
    """

    def __init__(self, directory: Path, project: str, config: Mapping[str, object]):
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f"config.wandb_project is {project!r}, but wandb is not installed: "
                "run pip install wandb, or leave the field empty."
            ) from error
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        directory = Path(directory).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        # A resumed run is a new W&B run of the same group, since W&B cannot rewind an offline run.
        self._run: Any = wandb.init(
            project=project, group=directory.name, dir=str(directory), config=dict(config), mode=mode
        )

    def write(self, step: int, kind: str, values: Scalars, wall: Scalars | None = None) -> None:
        self._run.log(_scalars(kind, values, wall), step=int(step))

    def flush(self) -> None:
        """Do nothing: wandb sends from a process of its own."""

    def close(self) -> None:
        self._run.finish()


def make_writers(
    workdir: Path, *, tensorboard: bool, wandb_project: str, config: dict, start_step: int = 0
) -> list[Writer]:
    """Return the writers of a run, `metrics.jsonl` first; only process 0 should call this.

    TensorBoard events go to `workdir/tensorboard` and are skipped when tensorboardX is not installed. An empty
    `wandb_project` means no Weights & Biases. `start_step` is the restored step of a resumed run.

    Raises:
      UserError: wandb is asked for and not installed.
    """
    workdir = Path(workdir)
    optional: list[Writer] = []
    if wandb_project:
        optional.append(WandbWriter(workdir, wandb_project, config))
    if tensorboard and importlib.util.find_spec("tensorboardX"):
        optional.append(TensorBoardWriter(workdir / "tensorboard", start_step))
    return [JsonlWriter(workdir / "metrics.jsonl"), *optional]


class Console:
    """Progress of a run: a bar on a terminal, plain lines anywhere else.

    Use as a context manager. The rate is measured from the first `update`, so the compilation of the first step does
    not count.
    """

    def __init__(self, total_steps: int, description: str, start_step: int = 0, file: TextIOBase | None = None):
        self._total, self._step = total_steps, start_step
        self._description = description
        self._first: tuple[int, float] | None = None
        self._last_drawn = 0.0
        self._console = _console(file)
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> "Console":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Show the bar (on a terminal) and begin a new measurement of the rate."""
        self._first = None
        if self._console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}", markup=False),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn("{task.fields[speed]}", markup=False),
                rich.progress.TimeElapsedColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(
                self._description, total=self._total, completed=self._step, speed=self._speed()
            )
            self._bar.start()

    def stop(self) -> None:
        """Draw the bar a last time and give the terminal back."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._step, speed=self._speed())
            self._bar.stop()
            self._bar = None

    def update(self, step: int) -> None:
        """Tell that `step` steps are done; cheap enough for every step."""
        now = time.monotonic()
        self._step = step
        if self._first is None:
            self._first = step, now
        if self._bar is not None and now - self._last_drawn > _REDRAW_SECONDS:
            self._last_drawn = now
            self._bar.update(self._task, completed=step, speed=self._speed())

    def rate(self) -> float:
        """Return steps per second since the first update; nan before the second."""
        if self._first is None or self._step == self._first[0]:
            return math.nan
        return (self._step - self._first[0]) / max(time.monotonic() - self._first[1], 1e-9)

    def log(self, step: int, kind: str, values: Scalars) -> None:
        """Print one line of metrics: above the bar, or with progress and rate where there is no bar."""
        metrics = "  ".join(f"{name} {float(values[name]):.4g}" for name in sorted(values))
        progress = "" if self._bar is not None else f"  [{self._speed()}]"
        self.print(f"{self._description} {step}/{self._total} {kind}{progress}  {metrics}")

    def print(self, text: str) -> None:
        """Print plain text, above the bar if there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print a table, above the bar if there is one."""
        _print_table(self._console, title, columns, rows)

    def _speed(self) -> str:
        rate = self.rate()
        if not rate > 0:
            return "- steps/s, ETA -"
        seconds = round(max(self._total - self._step, 0) / rate)
        return f"{rate:.3g} steps/s, ETA {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], file: TextIOBase | None = None) -> None:
    """Print a table, at least 100 characters wide, for what is shown outside of a run."""
    _print_table(_console(file), title, columns, rows)


def _console(file: TextIOBase | None) -> rich.console.Console:
    console = rich.console.Console(file=cast(IO[str], file or sys.stdout))
    console.width = max(100, console.width)
    return console


def _print_table(
    console: rich.console.Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    drawn = rich.table.Table(title=title, title_justify="left", box=box.SIMPLE if console.is_terminal else box.MARKDOWN)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(rich.text.Text(f"{cell:.4g}" if isinstance(cell, float) else str(cell)) for cell in row))
    console.print(drawn)
    console.file.flush()


def _scalars(kind: str, values: Scalars, wall: Scalars | None) -> dict[str, float]:
    named = {f"{kind}/{name}": float(value) for name, value in values.items()}
    return named | {f"wall/{name.removeprefix('wall_')}": float(value) for name, value in (wall or {}).items()}


def _json_number(value: SupportsFloat) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} must be written as a string")
