"""The embedded `faces`: SYNTHETIC cartoon people whose identity, valence and arousal are known exactly.

The strong cues (mouth, eyes, brows) carry each person's own offsets and gains, so the same picture means different
feelings in different people; the weak ones (folds, teeth, frown lines) do not. A network that recognises the people it
was trained on can undo their style, and fails on others.
"""

from __future__ import annotations

import numpy as np

from common.data.cache import cached_arrays
from common.data.faces.dataset import FaceData, Faces, number
from common.data.faces.people import categorize, draw_feelings, draw_person, express
from common.data.faces.rendering import render
from common.data.request import Request
from common.errors import UserError

_VERSION = 1  # raise when pictures or labels change, so that cached arrays are not mistaken for the new ones
_BLOCK = 4  # frames; every fifth block of a training person is kept out of training ("seen")
DEFAULTS: dict[str, object] = {
    "train_identities": 96,
    "validation_identities": 24,
    "test_identities": 48,
    "frames": 40,
    "confounding": 1.0,
    "curvature_std": 0.35,
    "gain_std": 0.30,
    "seed": 0,
}


def load(request: Request) -> FaceData:
    """Synthetic faces, rendered once and kept in the cache directory.

    Options: `train_identities` (96), `validation_identities` (24), `test_identities` (48), `frames` (40, of each
    person), `confounding` (1.0: in training the mood goes with looks; 0: with nothing), `curvature_std` (0.35, of the
    resting mouth), `gain_std` (0.30, of the logarithms of the gains; both 0: no personal style), `seed` (0).

    Raises:
      UserError: a path, or an option that cannot be.
    """
    if request.path is not None:
        raise UserError(f"data set {request.name!r} is rendered: leave dataset_path empty instead of {request.path!r}.")
    options = request.read_options(DEFAULTS)
    for name, least in (("train_identities", 2), ("validation_identities", 1), ("test_identities", 1), ("frames", 8)):
        if options[name] < least:
            raise UserError(
                f"option {name!r} of data set {request.name!r} is {options[name]}, but must be at least {least}."
            )
    if not 0 <= options["confounding"] <= 1:
        raise UserError(f"option 'confounding' of data set {request.name!r} must lie in 0..1.")
    for name in ("curvature_std", "gain_std", "seed"):
        if options[name] < 0:
            raise UserError(
                f"option {name!r} of data set {request.name!r} is {options[name]}, but must not be negative."
            )
    key = {"name": request.name, "version": _VERSION, "image_size": request.image_size, **options}
    arrays = cached_arrays(key, lambda: _make(request.image_size, options))
    counts = [options[f"{split}_identities"] for split in ("train", "validation", "test")]
    of_split = np.repeat(["train", "validation", "test"], np.multiply(counts, options["frames"]))
    frame = np.tile(np.arange(options["frames"]), sum(counts))
    held_out = (of_split == "train") & (frame // _BLOCK % 5 == 4)
    of_split = np.where(held_out, "seen", of_split)
    splits = {
        name: _split(arrays, np.flatnonzero(of_split == name), options["frames"])
        for name in ("train", "seen", "validation", "test")
    }
    return FaceData(request.name, splits, "rendered, free of rights", "parametric cartoon faces", synthetic=True)


def _make(image_size: int, options: dict) -> dict[str, np.ndarray]:
    people = [options[f"{split}_identities"] for split in ("train", "validation", "test")]
    count, frames, seed = sum(people), options["frames"], options["seed"]
    images = np.empty((count * frames, image_size, image_size, 3), np.uint8)
    labels, ages = np.empty((count * frames, 2)), np.empty(count * frames)
    for one in range(count):
        person = draw_person(seed, one, options["curvature_std"], options["gain_std"])
        feelings = draw_feelings(seed, one, person, frames, options["confounding"], one < people[0])
        random = np.random.default_rng([seed, one, 2])
        rows = slice(one * frames, (one + 1) * frames)
        images[rows] = [render(person, express(person, *feeling), image_size, random) for feeling in feelings.tolist()]
        labels[rows], ages[rows] = feelings, person.age
    return {"images": images, "labels": labels, "ages": ages}


def _split(arrays: dict[str, np.ndarray], places: np.ndarray, frames: int) -> Faces:
    people = [f"synth{one:03d}" for one in places // frames]
    identity, names = number(people)
    labels = arrays["labels"][places]
    return Faces(
        images=arrays["images"][places],
        valence_arousal=labels.astype(np.float32),
        identity=identity,
        identity_names=names,
        category=categorize(labels).astype(np.int32),
        age=arrays["ages"][places].astype(np.float32),
        files=tuple(f"{name}/{frame:03d}" for name, frame in zip(people, places % frames, strict=True)),
    )
