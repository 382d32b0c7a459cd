"""MVTec AD (Bergmann et al. 2019): fifteen categories, each with three splits of its own."""

from __future__ import annotations

from pathlib import Path

import tensorflow_datasets as tfds

from common.data.anomaly import folder, mvtec
from common.data.builders.base import PictureBuilder
from common.data.builders.layouts import Example, Layout, Splits
from common.data.request import Request


def _read(root: Path) -> Splits | None:
    present = [category for category in mvtec.CATEGORIES if (root / category / "train" / "good").is_dir()]
    if not present:
        return None
    splits = {}
    for category in present:
        found = folder.find(category, Request("mvtec_ad", "anomaly", 0, 3, str(root)))
        masks = [Example(image.defect, image.file.name, image.mask) for image in found.test if image.mask]
        splits[f"{category}_train"] = [Example("good", file.name, file) for file in found.train]
        splits[f"{category}_test"] = [Example(image.defect, image.file.name, image.file) for image in found.test]
        splits[f"{category}_ground_truth"] = masks
    return splits


class MvtecAd(PictureBuilder):
    """MVTec AD as published; "ground_truth" holds the mask of each defective test picture under the picture's name."""

    name = "mvtec_ad"
    VERSION = tfds.core.Version("1.0.0")
    description = "Fifteen products and textures: good pictures to train on, good and defective ones to test, masks."
    homepage = "https://www.mvtec.com/company/research/datasets/mvtec-ad"
    disjoint_classes = False
    layouts = (Layout("<category>/{train,test,ground_truth}, as in mvtec_anomaly_detection.tar.xz", _read),)
