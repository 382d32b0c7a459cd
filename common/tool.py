"""Command lines beside the training one, such as prediction: absl flags, one sentence for a mistake, exit code 2."""

import sys
from collections.abc import Callable
from pathlib import Path

import jax
from absl import app, logging

from common import config as configs
from common.data.cache import cache_dir
from common.errors import UserError


def new_file(out: Path) -> Path:
    """`out`, if nothing is there: no tool overwrites what another call has written. Raises UserError."""
    if out.exists():
        raise UserError(f"--out is {str(out)!r}, which exists already; choose another name or remove it.")
    return out


def new_folder(out: Path, first: str) -> Path:
    """The folder `out`, made where it is missing; it must not hold the file `first`. Raises UserError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out} cannot be used as a folder ({error.strerror}).") from error
    new_file(out / first)
    return out


def run(main: Callable[[], None]) -> None:
    """Parse the flags that were defined with `absl.flags`, then `main()`; compiled programs are kept as in training."""

    def guarded(argv: list[str]) -> None:
        del argv
        logging.set_verbosity(logging.ERROR)
        jax.config.update("jax_compilation_cache_dir", str(cache_dir("compiled")))
        try:
            main()
        except UserError as error:
            print(f"Error: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(guarded, flags_parser=configs.parse_flags)
