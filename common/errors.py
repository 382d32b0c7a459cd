"""The one exception type that `common.app` turns into a sentence and exit code 2, and a help for writing it."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend: the message says what is wrong, where, and what to do."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the known name closest to `name`, or "" when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1)
    if not close:  # the right name in the wrong group
        close = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    return f" (did you mean {close[0]!r}?)" if close else ""
