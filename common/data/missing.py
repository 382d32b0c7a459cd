"""The one sentence that a user reads when a data set is not on the machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError


def missing_data(
    name: str, looked_in: Sequence[Path | str], remedy: str, embedded: str = "--config.dataset=glyphs"
) -> UserError:
    """Error that names the data set, the places that were searched, what to do, and what runs right now."""
    places = ", ".join(str(place) for place in looked_in)
    return UserError(
        f"data set {name!r} was not found (looked in {places}): {remedy}; or run now with the embedded {embedded}."
    )
