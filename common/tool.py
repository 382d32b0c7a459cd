"""Command lines beside the training one, such as prediction: absl flags, one sentence for a mistake, exit code 2."""

import sys
from collections.abc import Callable

import jax
from absl import app, logging

from common import config as configs
from common.data.cache import cache_dir
from common.errors import UserError


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
