"""Checks of what a user may set for a data source."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from common.errors import UserError


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' for the known word most like `word`, or nothing if none is like it."""
    matches = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def read_options(name: str, options: Mapping[str, object] | None, defaults: Mapping[str, object]) -> dict:
    """`defaults` with the user's `options` put over them.

    An integer is accepted where the default is a float.

    Raises:
      UserError: an option that `defaults` does not hold, or a value of another type than its default.
    """
    merged = dict(defaults)
    for option, value in (options or {}).items():
        if option not in defaults:
            known = ", ".join(sorted(defaults)) or "none"
            raise UserError(
                f"data set {name!r} has no option {option!r}; its options are: {known}.{nearest(option, defaults)}"
            )
        wanted = type(defaults[option])
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise UserError(f"option {option!r} of data set {name!r} must be {wanted.__name__}, but is {value!r}.")
        merged[option] = value
    return merged
