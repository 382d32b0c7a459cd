"""Few-shot data sets that are known by name but have no reader yet: they say what can be done instead."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from common.data.missing import missing_data
from common.data.request import Request
from common.data.tfds_source import data_dir
from common.errors import UserError


def load(request: Request) -> NoReturn:
    """Raises UserError: a copy that the user has is pointed to the `folder` source, else `name` is missing."""
    prepared = data_dir(request.path) / request.name
    places = [Path(request.path).expanduser(), prepared] if request.path else [prepared]
    present = [place for place in places if place.is_dir()]
    place = present[0] if present else "<path>"
    remedy = (
        "this version has no builder for it, but class folders <path>/{train,val,test}/<class>/<image> are read by "
        f"--config.dataset=folder --config.dataset_path={place}"
    )
    if present:
        raise UserError(f"data set {request.name!r} cannot be read from {place} under this name: {remedy}.")
    raise missing_data(request.name, places, remedy)
