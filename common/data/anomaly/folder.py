"""A user's own images for anomaly detection, in the tree of MVTec AD or in two plain folders.

    <path>/train/good/*.png                                <path>/good/*.png
    <path>/test/good/*.png  <path>/test/<defect>/*.png     <path>/bad/*.png          (or any other folders, one per
    <path>/ground_truth/<defect>/<image>_mask.png          <path>/ground_truth/bad/   defect; may be absent)

Masks are optional: without the folder `ground_truth` only images are scored. Of plain folders a share of the good
images is kept for the test.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.data.anomaly.dataset import AnomalyData
from common.data.anomaly.frame import Frame, find_pictures, open_picture
from common.data.request import Request
from common.errors import UserError

_OPTIONS = {"good_folder": "good", "good_test_share": 0.2}
_MASKS = "ground_truth"


class TestImage(NamedTuple):
    file: Path
    defect: str  # "good" for none
    mask: Path | None


class Listing(NamedTuple):
    """The files of one category; masks are all there or none is."""

    train: list[Path]
    test: list[TestImage]


def load(category: str, frame: Frame, request: Request) -> AnomalyData:
    """The images under `path`, or under `path`/`category`.

    Options: `good_folder` ("good"), `good_test_share` (0.2; of plain folders, drawn with the seed).

    Raises:
      UserError: no such folder, no good images, a missing, damaged or unfitting picture or mask.
    """
    root = _root(category, request)
    listing = find(category, request)
    return read(listing, root, frame, request.name if not category else f"{request.name}/{category}")


def count_training_images(category: str, request: Request) -> int:
    return len(find(category, request).train)


def find(category: str, request: Request) -> Listing:
    """All files, checked to be there."""
    root, options = _root(category, request), request.read_options(_OPTIONS)
    good = options["good_folder"]
    if not 0 < options["good_test_share"] < 1:
        share = options["good_test_share"]
        raise UserError(f"option 'good_test_share' of data set {request.name!r} must lie in 0..1, but is {share}.")
    if (root / "train").is_dir():
        listing = _mvtec_tree(root, good)
    else:
        listing = _plain_folders(root, good, options["good_test_share"], request.seed)
    if not listing.train:
        raise UserError(
            f"there are no good images to learn from in {root}: put them into {root / 'train' / good} or {root / good}."
        )
    return listing


def read(listing: Listing, root: Path, frame: Frame, name: str, licence: str = "the user's own") -> AnomalyData:
    """Read what was found, test images sorted by defect."""
    with_masks = any(image.mask for image in listing.test)
    images, masks = [], []
    for image in listing.test:
        picture = open_picture(image.file)
        images.append(frame.image(picture, str(image.file)))
        if image.mask:
            mask = open_picture(image.mask)
            if mask.size != picture.size:
                raise UserError(
                    f"mask {image.mask} has {mask.width} x {mask.height} pixels, but its picture {image.file} has "
                    f"{picture.width} x {picture.height}: they must be of one size."
                )
            masks.append(frame.mask(mask, str(image.mask)))
        else:
            masks.append(np.zeros(frame.crop, bool))
    shape = (*frame.crop, 3)
    return AnomalyData(
        name=name,
        train=np.stack([frame.image(open_picture(file), str(file)) for file in listing.train]),
        test=np.stack(images) if images else np.zeros((0, *shape), np.uint8),
        labels=np.array([image.defect != "good" for image in listing.test], np.int32),
        masks=np.stack(masks) if with_masks else None,
        defects=tuple(image.defect for image in listing.test),
        files=tuple(image.file.relative_to(root).as_posix() for image in listing.test),
        licence=licence,
        source=str(root),
    )


def _root(category: str, request: Request) -> Path:
    if request.path is None:
        raise UserError(
            f"data set {request.name!r} needs the folder of your images: set --config.dataset_path=<folder>."
        )
    root = Path(request.path).expanduser() / category
    if not root.is_dir():
        remedy = "; --config.category= if there is only one category" if category else ""
        raise UserError(f"the folder {root} does not exist; check --config.dataset_path and --config.category{remedy}.")
    return root


def _mvtec_tree(root: Path, good: str) -> Listing:
    normal = root / "train" / good
    test_folders = _folders(root / "test") if (root / "test").is_dir() else []
    return Listing(find_pictures(normal) if normal.is_dir() else [], _test_images(root, test_folders, good))


def _plain_folders(root: Path, good: str, share: float, seed: int) -> Listing:
    normal = find_pictures(root / good) if (root / good).is_dir() else []
    held_out = max(1, round(share * len(normal))) if len(normal) > 1 else 0
    order = np.random.default_rng(seed).permutation(len(normal))
    train, kept = ([normal[i] for i in sorted(part)] for part in (order[held_out:], order[:held_out]))
    others = [folder for folder in _folders(root) if folder.name not in (good, _MASKS)]
    return Listing(train, [TestImage(file, "good", None) for file in kept] + _test_images(root, others, good))


def _folders(root: Path) -> list[Path]:
    return sorted(item for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))


def _test_images(root: Path, folders: list[Path], good: str) -> list[TestImage]:
    with_masks = (root / _MASKS).is_dir()
    found = []
    for folder in folders:
        for file in find_pictures(folder):
            defect = "good" if folder.name == good else folder.name
            found.append(TestImage(file, defect, _mask(root, file) if with_masks and defect != "good" else None))
    return found


def _mask(root: Path, file: Path) -> Path:
    folder = root / _MASKS / file.parent.name
    for stem in (f"{file.stem}_mask", file.stem):
        for suffix in dict.fromkeys([".png", file.suffix, ".bmp", ".tif", ".tiff"]):
            if (folder / f"{stem}{suffix}").is_file():
                return folder / f"{stem}{suffix}"
    raise UserError(
        f"the mask {folder / f'{file.stem}_mask.png'} of {file} is missing: add it, or remove {root / _MASKS} to score "
        "images only."
    )
