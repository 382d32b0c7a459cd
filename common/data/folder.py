"""A user's own pictures in class folders."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from common.data.dataset import Dataset, Split, make_dataset
from common.data.images import fit_picture
from common.data.request import Request
from common.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
_VALIDATION_SHARE, _TEST_SHARE = 0.16, 0.20

Classes = dict[str, list[Path]]


def load(request: Request) -> Dataset:
    """Pictures in `path/<class>/<image>` or `path/{train,validation|val,test}/<class>/<image>`.

    Without split folders, few-shot data split the classes 64/16/20 % and classification data split the images of each
    class 80/20 % into train and test; both by a shuffle that depends on `seed` and the sorted names only.

    Options: `min_images_per_class` (2): fewer are an error; `min_classes_per_split` (5, few-shot only): the
    validation and test splits get at least so many classes, and fewer in any split are an error.

    Raises:
      UserError: no path, no such folder, no classes, too few classes or images, classes that do not fit the task, a
        picture that cannot be read, the same picture in two split folders or (few-shot) twice at all, or an unknown
        option.
    """
    defaults: dict[str, object] = {"min_images_per_class": 2}
    if request.task == "fewshot":
        defaults["min_classes_per_split"] = 5
    chosen = request.read_options(defaults)
    if request.path is None:
        raise UserError(
            f"data set {request.name!r} needs the folder of your pictures: set --config.dataset_path=<folder>."
        )
    root = Path(request.path).expanduser()
    if not root.is_dir():
        raise UserError(f"folder {root} (--config.dataset_path) does not exist.")
    if has_splits(root):
        files = _find_splits(root, request.task, chosen["min_images_per_class"])
    else:
        classes = _find_classes(root, max(2, chosen["min_images_per_class"]))
        random = np.random.default_rng(request.seed)
        if request.task == "fewshot":
            files = _split_classes(root, classes, chosen["min_classes_per_split"], random)
        else:
            files = _split_images(classes, random)
    if request.task == "fewshot":
        for split, classes in files.items():
            if len(classes) < chosen["min_classes_per_split"]:
                raise UserError(
                    f"split {split!r} of {root} has {len(classes)} classes, but few-shot episodes need at least "
                    f"{chosen['min_classes_per_split']}: add class folders or use fewer ways."
                )
    if request.task == "fewshot" or has_splits(root):
        _check_duplicates(files, request.task)
    splits = {split: _read_split(classes, request.image_size, request.channels) for split, classes in files.items()}
    return make_dataset(request.name, splits, licence="the user's own", source=str(root))


def has_splits(root: Path | str) -> bool:
    """Whether a folder of pictures is split already: train/<class>/."""
    return any(folder.is_dir() for folder in Path(root).expanduser().glob("train/*"))


def _find_splits(root: Path, task: str, min_images: int) -> dict[str, Classes]:
    files: dict[str, Classes] = {}
    for split, folder_names in _SPLIT_FOLDERS.items():
        present = [root / folder for folder in folder_names if (root / folder).is_dir()]
        if present:
            files[split] = _find_classes(present[0], min_images)
        elif split == "test" or task == "fewshot":
            raise UserError(f"folder {root / folder_names[0]} is missing beside {root / 'train'}: {task} needs it.")
    for split in [split for split in files if split != "train"]:
        train, other = files["train"].keys(), files[split].keys()
        if task == "fewshot" and train & other:
            raise UserError(
                f"class {min(train & other)!r} is in both 'train' and {split!r} of {root}: few-shot splits must hold "
                "different classes."
            )
        if task == "classification" and train ^ other:
            raise UserError(
                f"class {min(train ^ other)!r} is in only one of 'train' and {split!r} of {root}: classification "
                "splits must hold the same classes."
            )
    if task == "fewshot" and (shared := files["validation"].keys() & files["test"].keys()):
        raise UserError(
            f"class {min(shared)!r} is in both 'validation' and 'test' of {root}: few-shot splits must hold different "
            "classes."
        )
    return files


def _find_classes(folder: Path, min_images: int) -> Classes:
    """Picture files of each class folder, both sorted by name."""
    classes: Classes = {}
    for class_folder in sorted(item for item in folder.iterdir() if item.is_dir() and not item.name.startswith(".")):
        files = sorted(
            item for item in class_folder.iterdir() if item.suffix.lower() in SUFFIXES and not item.name.startswith(".")
        )
        if len(files) < min_images:
            raise UserError(
                f"class folder {class_folder} holds {len(files)} pictures ({', '.join(SUFFIXES)}), but at least "
                f"{min_images} are needed."
            )
        classes[class_folder.name] = files
    if len(classes) < 2:
        raise UserError(
            f"folder {folder} holds {len(classes)} class folders, but at least 2 are needed: put the pictures of each "
            "class into a folder of its own, <folder>/<class>/<image>."
        )
    return classes


def _split_classes(root: Path, classes: Classes, min_classes: int, random: np.random.Generator) -> dict[str, Classes]:
    count = len(classes)
    if count < 3 * max(1, min_classes):
        raise UserError(
            f"folder {root} holds {count} classes, but three few-shot splits of at least {min_classes} need "
            f"{3 * max(1, min_classes)}: add class folders or use fewer ways."
        )
    sizes = [max(1, min_classes, round(share * count)) for share in (_VALIDATION_SHARE, _TEST_SHARE)]
    order = [list(classes)[index] for index in random.permutation(count)]
    chosen = {"train": order[sum(sizes) :], "validation": order[: sizes[0]], "test": order[sizes[0] : sum(sizes)]}
    return {split: {label: classes[label] for label in sorted(labels)} for split, labels in chosen.items()}


def _split_images(classes: Classes, random: np.random.Generator) -> dict[str, Classes]:
    files: dict[str, Classes] = {"train": {}, "test": {}}
    for label, members in classes.items():
        test_size = max(1, round(_TEST_SHARE * len(members)))
        order = random.permutation(len(members))
        files["test"][label] = [members[index] for index in sorted(order[:test_size])]
        files["train"][label] = [members[index] for index in sorted(order[test_size:])]
    return files


def _check_duplicates(files: dict[str, Classes], task: str) -> None:
    """Raise UserError for files of equal content: in two splits, and for few-shot anywhere, since the support and the
    query images of an episode may come from one class."""
    by_size: dict[int, list[tuple[str, Path]]] = {}
    for split, classes in files.items():
        for file in (file for members in classes.values() for file in members if file.is_file()):
            by_size.setdefault(file.stat().st_size, []).append((split, file))
    pairs, first = [], {}
    for candidates in (group for group in by_size.values() if len(group) > 1):
        for split, file in candidates:
            digest = hashlib.sha256(file.read_bytes()).digest()
            other_split, other = first.setdefault(digest, (split, file))
            if other != file and (task == "fewshot" or split != other_split):
                pairs.append((other_split, other, split, file))
    if pairs:
        other_split, other, split, file = pairs[0]
        more = f" (and so are {len(pairs) - 1} other pairs)" if len(pairs) > 1 else ""
        why = f"{other_split!r} and {split!r} share it" if split != other_split else "an episode may query its support"
        raise UserError(f"pictures {other} and {file} are the same{more}, so {why}: remove one of them.")


def _read_split(classes: Classes, image_size: int, channels: int) -> Split:
    images = read_pictures([file for members in classes.values() for file in members], image_size, channels)
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(members) for members in classes.values()])
    return Split(images, labels, tuple(classes))


def find_pictures(images: Path) -> list[Path]:
    """The picture files at or below what --images names, sorted. Raises UserError where there is none."""
    if images.is_file():
        return [images]
    if not images.is_dir():
        raise UserError(f"--images={images}: there is no such file or folder.")
    files = sorted(file for file in images.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise UserError(f"folder {images} holds no pictures ({', '.join(SUFFIXES)}).")
    return files


def read_pictures(files: Sequence[Path], image_size: int, channels: int) -> UInt8[np.ndarray, "n s s c"]:
    """Pictures turned as their cameras say and resized. Raises UserError that names and counts unreadable ones."""
    images = np.empty((len(files), image_size, image_size, channels), np.uint8)
    unreadable = []
    for index, file in enumerate(files):
        try:
            with Image.open(file) as picture:
                images[index] = fit_picture(ImageOps.exif_transpose(picture), image_size, channels)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            unreadable.append((file, error))
    if unreadable:
        file, error = unreadable[0]
        others = f", nor can {len(unreadable) - 1} other(s)" if len(unreadable) > 1 else ""
        raise UserError(f"picture {file} cannot be read ({error}){others}: replace or remove it.") from error
    return images
