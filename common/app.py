"""The command line that all methods share: `python -m <method>.main --config=<file>[:variant] [--config.field=...]`."""

import errno
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from common import config as configs
from common import loop, parallel, phases, workdir, writers
from common.data.cache import cache_dir
from common.errors import UserError
from common.experiment import Phase

# What writing meets on a disk that is full, read-only or somebody else's, whenever that happens.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)

Mode = Callable[[ConfigDict, Path], None]

_CONFIG = config_flags.DEFINE_config_file(
    "config", lock_config=True, help_string="Config file, with :variant if wanted."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Folder of the run; default: runs/<name>-seed<seed>-<hash of the config>."
)
_MODE = flags.DEFINE_string("mode", "train", "train (resumes by itself) or eval (a run that was trained before).")
_MULTIHOST = flags.DEFINE_bool("multihost", False, "Join the other processes of a TPU pod or cluster.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of process 0, where --multihost cannot find it.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "Number of processes, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Number of this process, with --coordinator.")
_CACHE = flags.DEFINE_string("compilation_cache", "default", "Folder for compiled programs, or 'off'.")


def run(
    build: phases.Build | None = None,
    phases_of: Callable[[ConfigDict], Sequence[Phase]] | None = None,
    modes: Mapping[str, Mode] | None = None,
    evaluation_fields: Collection[str] = (),
) -> None:
    """Parse the flags and run: `build` (or the phases) for the modes train and eval, `modes` for a method's own.

    `evaluation_fields` are read by --mode=eval alone: empty in training, and free to be set for a finished run.
    """
    app.run(
        lambda argv: sys.exit(_main(build, phases_of, modes or {}, evaluation_fields)),
        flags_parser=configs.parse_flags,
    )


def _main(build, phases_of, modes: Mapping[str, Mode], evaluation_fields: Collection[str] = ()) -> int:
    try:
        _start_jax()
        config = _CONFIG.value
        if _MODE.value not in {"train", "eval", *modes}:
            raise UserError(
                f"--mode is {_MODE.value!r}, but one of {', '.join(['train', 'eval', *modes])} is expected."
            )
        folder = Path(_WORKDIR.value) if _WORKDIR.value else workdir.default_path(config, evaluation_fields)
        if _MODE.value in modes:
            modes[_MODE.value](config, folder)
            return 0
        stages = phases.plan(config, build, phases_of)
        run_mode = _train if _MODE.value == "train" else _evaluate
        return run_mode(stages, config, folder, evaluation_fields)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except loop.NonFiniteError as error:
        print(f"Stopped: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in _DISK:
            raise
        print(
            f"Error: {error.filename or 'a file'} cannot be written ({error.strerror}); mend that and run the same "
            "command: it resumes from the last checkpoint.",
            file=sys.stderr,
        )
        return 2


def _train(stages: Sequence[Phase], config: ConfigDict, folder: Path, evaluation_fields: Collection[str]) -> int:
    workdir.check_unset(config, evaluation_fields)
    if workdir.is_done(folder):
        workdir.check_config(folder, config, evaluation_fields)
        print(f"The run in {folder} is finished already; use --mode=eval to evaluate it, or another --workdir.")
        _show(f"Results of {folder}", phases.results(stages, folder))
        return 0
    outcomes = phases.train(stages, config, folder)
    last = outcomes.get(stages[-1].name)
    if last is not None and last.finished:
        _show(f"Results of {folder}", phases.results(stages, folder))
    return 0


def _evaluate(stages: Sequence[Phase], config: ConfigDict, folder: Path, evaluation_fields: Collection[str]) -> int:
    values = phases.evaluate(stages, config, folder, evaluation_fields)
    if parallel.is_main():
        file = workdir.write_results(folder, workdir.evaluation_name(config, evaluation_fields), values)
        _show(f"Evaluation of {folder}, written to {file.name}", values)
    return 0


def _show(title: str, values: Mapping[str, float]) -> None:
    if parallel.is_main() and values:
        print(f"{title}:")  # not as the table's title, which is broken into lines as narrow as the table
        writers.table("", ["result", "value"], [(name, values[name]) for name in sorted(values)])


def _start_jax() -> None:
    logging.set_verbosity(logging.FATAL)  # Orbax warns at every save without a metric, and logs whatever it raises
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    parallel.start_processes(_MULTIHOST.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if _CACHE.value != "off":
        folder = cache_dir("compiled") if _CACHE.value == "default" else Path(_CACHE.value)
        jax.config.update("jax_compilation_cache_dir", str(folder))
