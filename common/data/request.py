"""What a data source is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from common.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Request:
    """The arguments of `registry.load`; sources take what applies to them."""

    name: str
    task: str
    image_size: int
    channels: int
    path: str | None = None
    seed: int = 0
    options: Mapping[str, object] = field(default_factory=dict)

    def read_options(self, defaults: Mapping[str, object]) -> dict[str, Any]:
        """`defaults` with the user's `options` put over them; an integer is accepted where the default is a float.

        Raises:
          UserError: an option that `defaults` does not hold, or a value of another type than its default.
        """
        merged = dict(defaults)
        for option, value in self.options.items():
            if option not in defaults:
                known = ", ".join(sorted(defaults)) or "none"
                near = did_you_mean(option, defaults)
                raise UserError(f"data set {self.name!r} has no option {option!r}{near}; its options are: {known}.")
            wanted = type(defaults[option])
            if wanted is float and type(value) is int:
                value = float(value)
            if type(value) is not wanted:
                raise UserError(
                    f"option {option!r} of data set {self.name!r} must be {wanted.__name__}, but is {value!r}."
                )
            merged[option] = value
        return merged
