"""MVTec AD (Bergmann et al., CVPR 2019): fifteen products and textures, read from the unpacked archive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from common.data.anomaly import folder
from common.data.anomaly.dataset import AnomalyData, check_category
from common.data.anomaly.frame import Frame
from common.data.request import Request
from common.errors import UserError

CATEGORIES = (
    *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile"),
    *("toothbrush", "transistor", "wood", "zipper"),
)
TEXTURES = ("carpet", "grid", "leather", "tile", "wood")


DEFAULT_PATH = "data/mvtec_ad"


def load(category: str, frame: Frame, request: Request) -> AnomalyData:
    """One category of <path>/<category>/{train,test,ground_truth}. Raises UserError: missing data, unknown category."""
    request = _located(category, request)
    root = Path(str(request.path)).expanduser() / category
    return folder.read(folder.find(category, request), root, frame, f"mvtec_ad/{category}", "CC BY-NC-SA 4.0")


def count_training_images(category: str, request: Request) -> int:
    """Number of files in train/good."""
    return len(folder.find(category, _located(category, request)).train)


def _located(category: str, request: Request) -> Request:
    """The request with a path under which the category is."""
    check_category(category, CATEGORIES, request.name)
    request.read_options({})
    path = request.path or DEFAULT_PATH
    expected = Path(path).expanduser() / category / "train" / "good"
    if not expected.is_dir():
        raise UserError(
            f"MVTec AD was not found (looked for {expected}): download it from mvtec.com (free for research, "
            "registration needed), unpack it and set --config.dataset_path to the folder that holds 'bottle', 'cable' "
            "and so on; or run now with the embedded --config.dataset=textures."
        )
    return replace(request, path=path)
