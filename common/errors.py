"""The one exception type that `common.app` turns into a sentence and exit code 2."""


class UserError(ValueError):
    """Something the user can mend: the message says what is wrong, where, and what to do."""
