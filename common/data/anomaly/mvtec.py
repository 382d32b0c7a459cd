"""MVTec AD (Bergmann et al., CVPR 2019): fifteen products and textures, from the unpacked archive or prepared."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.data import tfds_source
from common.data.anomaly import folder
from common.data.anomaly.dataset import AnomalyData, check_category
from common.data.anomaly.frame import Frame
from common.data.request import Request
from common.errors import UserError

CATEGORIES = (
    *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile"),
    *("toothbrush", "transistor", "wood", "zipper"),
)
TEXTURES = ("carpet", "grid", "leather", "tile", "wood")  # the other categories are objects

NAME, LICENCE = "mvtec_ad", "CC BY-NC-SA 4.0"


def load(category: str, frame: Frame, request: Request) -> AnomalyData:
    """One category, from the unpacked archive <path>/<category>/... or as `common.data.prepare` has written it.

    Raises:
      UserError: unknown category, data that are in neither place, damaged or unfitting files.
    """
    tree, prepared = _locate(category, request)
    if prepared is None:
        return folder.read(folder.find(category, request), tree, frame, f"{NAME}/{category}", LICENCE)
    return _load_prepared(category, frame, prepared)


def count_training_images(category: str, request: Request) -> int:
    """Number of pictures to train on."""
    _, prepared = _locate(category, request)
    if prepared is None:
        return len(folder.find(category, request).train)
    return len(_records(prepared, f"{category}_train"))


def _locate(category: str, request: Request) -> tuple[Path, Path | None]:
    """(folder of the category in the unpacked archive, folder of the prepared set where the former is absent)."""
    check_category(category, CATEGORIES, request.name)
    request.read_options({})
    tree = Path(request.path or "").expanduser() / category
    if request.path and (tree / "train" / "good").is_dir():
        return tree, None
    prepared = tfds_source.find_prepared(NAME, request.path)
    if prepared is None:
        looked = [str(tree / "train" / "good")] if request.path else []
        raise UserError(
            f"MVTec AD was not found (looked for {', '.join([*looked, str(tfds_source.data_dir(request.path) / NAME)])}"
            "): download it from mvtec.com (free for research, registration needed), unpack it and set "
            "--config.dataset_path to the folder that holds 'bottle', 'cable' and so on, or prepare it once by "
            f"python -m common.data.prepare --name={NAME} --manual_dir=<folder or archive>; or run now with the "
            "embedded --config.dataset=textures."
        )
    return tree, prepared


def _records(prepared: Path, split: str) -> Any:
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(prepared)
    if split not in builder.info.splits:
        raise UserError(
            f"the prepared set in {prepared} has no split {split!r}: delete it and prepare all of MVTec AD."
        )
    tfds_source.check_files(NAME, prepared, (split,))
    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


def _load_prepared(category: str, frame: Frame, prepared: Path) -> AnomalyData:
    def pictures(split: str) -> dict[tuple[str, str], Image.Image]:
        """{(defect, file name): picture}, sorted."""
        found = {}
        for record in _records(prepared, f"{category}_{split}"):
            name = tuple(bytes(record[part]).decode() for part in ("class_name", "file_name"))
            found[name] = Image.open(io.BytesIO(record["image"]))
        return dict(sorted(found.items()))

    train, test, masks = pictures("train"), pictures("test"), pictures("ground_truth")
    mask_of = {
        name: frame.mask(masks[name], f"{name} of {prepared}") if name in masks else np.zeros(frame.crop, bool)
        for name in test
    }
    return AnomalyData(
        name=f"{NAME}/{category}",
        train=np.stack([frame.image(picture, f"{name} of {prepared}") for name, picture in train.items()]),
        test=np.stack([frame.image(picture, f"{name} of {prepared}") for name, picture in test.items()]),
        labels=np.array([defect != "good" for defect, _ in test], np.int32),
        masks=np.stack(list(mask_of.values())),
        defects=tuple(defect for defect, _ in test),
        files=tuple(f"test/{defect}/{file}" for defect, file in test),
        licence=LICENCE,
        source=str(prepared),
    )
