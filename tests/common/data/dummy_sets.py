"""Small copies of the few-shot data sets in every tree they are published in. A picture's colour tells what it is."""

import csv
import io
import pickle
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

CLASSES = {"train": ["n03", "n01", "n02"], "val": ["n05", "n04"], "test": ["n07", "n06"]}
PER_CLASS = 4
NUMBERS = {label: number for number, label in enumerate(sorted(chain(*CLASSES.values())), 1)}


def pixels(number: int, index: int) -> np.ndarray:
    """84 x 84 of one colour: red tells the class, green the place in the class."""
    return np.broadcast_to(np.array([number, 10 * index, 200], np.uint8), (84, 84, 3)).copy()


def encoded(number: int, index: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(number, index)).save(stream, "PNG")
    return stream.getvalue()


def write(file: Path, number: int, index: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encoded(number, index))


def class_folders(root: Path) -> None:
    for split, labels in CLASSES.items():
        for label in labels:
            for index in range(PER_CLASS):
                write(root / split / label / f"{index}.png", NUMBERS[label], index)


def csv_lists(root: Path) -> None:
    for split, labels in CLASSES.items():
        names = [(f"{label}{index:08d}.png", label, index) for label in labels for index in range(PER_CLASS)]
        for name, label, index in names:
            write(root / "images" / name, NUMBERS[label], index)
        with (root / f"{split}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([("filename", "label"), *(row[:2] for row in names)])


def _arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images of a split and the number of each one's class within the split, in the order of CLASSES."""
    labels = CLASSES[split]
    images = np.stack([pixels(NUMBERS[label], index) for label in labels for index in range(PER_CLASS)])
    return images, np.repeat(np.arange(len(labels)), PER_CLASS)


def pickled_cache(root: Path, protocol: int = 2) -> None:
    for split, labels in CLASSES.items():
        images, numbers = _arrays(split)
        places = {label: np.flatnonzero(numbers == row).tolist() for row, label in enumerate(labels)}
        content = {"image_data": images, "class_dict": places}
        (root / f"mini-imagenet-cache-{split}.pkl").write_bytes(pickle.dumps(content, protocol))


def pickled_pngs(root: Path) -> None:
    for split, labels in CLASSES.items():
        pictures = [
            np.frombuffer(encoded(NUMBERS[label], index), np.uint8)[:, None]  # as OpenCV returns them
            for label in labels
            for index in range(PER_CLASS)
        ]
        (root / f"{split}_images_png.pkl").write_bytes(pickle.dumps(pictures, 2))
        content = {"label_specific": _arrays(split)[1], "label_specific_str": labels, "label_general": np.zeros(12)}
        (root / f"{split}_labels.pkl").write_bytes(pickle.dumps(content, 4))


def arrays_of_opencv(root: Path) -> None:
    for split in CLASSES:
        images, numbers = _arrays(split)
        np.savez(root / f"{split}_images.npz", images=images[..., ::-1])
        np.savez(root / f"{split}_labels.npz", label_specific=numbers)


def birds(root: Path) -> None:
    for number in range(1, 9):
        for index in range(PER_CLASS):
            write(root / "CUB_200_2011" / "images" / f"{number:03d}.Bird_{number}" / f"B_{index}.jpg", number, index)
    (root / "CUB_200_2011" / "images.txt").write_text("not needed")


CIFAR = {"train": ["apple", "bee", "tank"], "val": ["lamp", "otter"], "test": ["baby", "worm"]}


def cifar_archive(root: Path) -> None:
    for number, label in enumerate(chain(*CIFAR.values()), 1):
        for index in range(PER_CLASS):
            write(root / "cifar100" / "data" / label / f"{index}.png", number, index)


def prepared_cifar100(root: Path) -> None:
    """As tensorflow-datasets leaves it; half of each class is in each of its splits."""
    labels = list(chain(*CIFAR.values()))

    class Cifar100(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "cifar100"
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(84, 84, 3)),
                "label": tfds.features.ClassLabel(names=labels),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(range(2)), "test": self._generate_examples(range(2, 4))}

        def _generate_examples(self, places):
            for number, label in enumerate(labels, 1):
                for index in places:
                    yield f"{label}-{index}", {"image": io.BytesIO(encoded(number, index)), "label": label}

    Cifar100(data_dir=root, file_format="array_record").download_and_prepare()


TREES: dict[str, dict[str, Callable[[Path], None]]] = {
    "mini_imagenet": {"folders": class_folders, "lists": csv_lists, "pickles": pickled_cache},
    "tiered_imagenet": {"folders": class_folders, "pngs": pickled_pngs, "arrays": arrays_of_opencv},
    "cub_200_2011": {"published": birds, "folders": class_folders},
    "cifar_fs": {"archive": cifar_archive, "cifar100": prepared_cifar100, "folders": class_folders},
}
