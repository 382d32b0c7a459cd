"""Files that a user can hand in, damaged anywhere: read all the same, or refused in one sentence; never a traceback.

What PyTorch files, safetensors and checkpoints may hold is tested beside their readers, pickles that want to execute
something in tests/common/test_torch_files.py and tests/common/data/test_prepare.py.
"""

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from anomaly import evaluation
from common import exported, workdir, writers
from common.data import cache, fashion_mnist
from common.data.anomaly import frame
from common.data.builders import arrays, layouts, tiny_imagenet
from common.data.faces import published, table
from common.data.folder import read_pictures
from common.data.prepare import _unpack
from common.errors import UserError
from common.pretrained import read_weights, save_safetensors
from pruning import deploy, official_weights
from pruning.models.cifar_resnet import cifar_resnet
from tests.common.torch_writer import whole, write_legacy, write_zip
from tests.pruning.networks import variables
from tests.pruning.test_bad_input import write as write_official

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
GRAPH = cifar_resnet(8, 4)
CALIBRATION = json.dumps(evaluation.Calibration(0.0, 1.0, 0.5, 0.5, "test")._asdict())


class Kind(NamedTuple):
    """A kind of file: its name, a whole one of it, what reads it, and how many damaged copies are tried."""

    name: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    examples: int = 40


def picture(file):
    Image.fromarray(PIXELS).save(file)


def text(content):
    return lambda file: file.write_text(content)


def pickled(file):
    file.write_bytes(pickle.dumps({"labels": np.arange(5), "names": ["a", "b"]}, 2))


def archive(file):
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
            made.writestr("train/a/1.png", bytes(200))
    else:
        with tarfile.open(file, {".tar": "w", ".tgz": "w:gz"}.get(file.suffix, f"w:{file.suffix[1:]}")) as made:
            made.addfile(member("train/a/1.png", 200), io.BytesIO(bytes(200)))


def member(name, size, **fields):
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def unpack(file):
    _unpack(file, file.parent / "unpacked")


def idx(file):
    content = bytes((0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 4)) + bytes(32)
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def csv_list(file):
    (file.parent / "images").mkdir(exist_ok=True)
    (file.parent / "images" / "a.png").touch()
    file.write_text("filename,label\na.png,bird\na.png,cat\n")


def annotations(file):
    (file.parent / "images").mkdir(exist_ok=True)
    (file.parent / "images" / "val_0.JPEG").touch()
    file.write_text("val_0.JPEG\tn01\t0\t0\t62\t62\nval_0.JPEG\tn02\t0\t0\t62\t62\n")


def clip(file):
    file.write_text(json.dumps({"video_id": "001", "frames": {"00000": {"valence": 1.0, "arousal": -2.0}}}))


def video(file):
    """Of Aff-Wild2: beside the folder of its frames."""
    frames = file.parents[2] / "cropped_aligned" / file.stem
    frames.mkdir(parents=True, exist_ok=True)
    (frames / "00001.jpg").touch()
    file.write_text("valence,arousal\n0.25,-0.5\n-5,-5\n")


def slim(file):
    made = {"architecture": "resnet8", "num_classes": 4, "image_channels": 3, "image_size": 16, "class_names": "abcd"}
    file.write_text(json.dumps({**made, "mean": [0.5] * 3, "std": [0.2] * 3, "kept": {"stem": [0, 1]}}))


KINDS = [
    *(Kind(f"a.{end}", picture, lambda file: read_pictures([file], 8, 3)) for end in ("png", "jpg", "bmp", "webp")),
    Kind("picture.png", picture, frame.open_picture),
    Kind("faces.csv", text("path,identity,valence,arousal\na.png,me,0.5,-0.5\nb.png,you,0,0\n"), table.read_rows),
    Kind("train.csv", csv_list, lambda file: layouts._read_csv(file, file.parent / "images")),
    Kind("val_annotations.txt", annotations, lambda file: tiny_imagenet._annotated(file.parent)),
    Kind("001/001.json", clip, lambda file: published._afew_va(file.parents[1], 0.1)),
    Kind("annotations/Train_Set/v.txt", video, lambda file: published._aff_wild2(file.parents[2], 1.0)),
    Kind("ages.csv", text("image,age\na.png,30\nb.png,40.5\n"), published._ages),
    Kind("1_val.npy", lambda file: np.save(file, np.float64(0.5)), published._array),
    Kind("arrays.npz", lambda file: np.savez(file, images=PIXELS[None]), lambda file: arrays.read_npz(file, "images")),
    Kind("packed.npz", lambda file: np.savez_compressed(file, a=PIXELS), lambda file: arrays.read_npz(file, "a")),
    Kind("labels.pkl", pickled, arrays.read_pickle),
    Kind(
        "official.npz",
        lambda file: write_official(file, GRAPH, *variables(GRAPH, 16)),
        lambda file: official_weights.read(file, GRAPH),
        15,
    ),
    Kind("cached.npz", lambda file: np.savez(file, a=PIXELS), cache._read),
    Kind(
        "program.npz",
        lambda file: exported.write(
            lambda w, x: (w[None] * x,), jnp.ones(2), [exported.some((2,), jnp.float32)], {}, file
        ),
        exported.load,
        25,
    ),
    Kind("slim.json", slim, deploy._read),
    Kind("calibration.json", text(CALIBRATION), lambda file: evaluation.read_calibration(file.parent)),
    Kind("config.json", text('{"seed": 0, "name": "x", "sizes": [1, 2]}'), lambda f: workdir.read_config(f.parent)),
    Kind("metrics.jsonl", text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n'), writers.read),
    *(Kind(f"set.{end}", archive, unpack) for end in ("zip", "tar", "tgz", "tar.bz2", "tar.xz")),
    Kind("train-images-idx3-ubyte", idx, lambda file: fashion_mnist._read_idx(file.parent, file.name, 3)),
    Kind("x-idx3-ubyte.gz", idx, lambda file: fashion_mnist._read_idx(file.parent, file.stem, 3)),
    Kind("w.safetensors", lambda file: save_safetensors(file, {"a": PIXELS}), read_weights),
    Kind("zip.pth", lambda file: write_zip(file, {"a": whole("0", PIXELS)}), read_weights),
    Kind("legacy.pth", lambda file: write_legacy(file, {"a": whole("0", PIXELS)}), read_weights),
]


def cut(content, at, _):
    return content[: int(at * len(content))]


def flipped(content, at, number):
    place = int(at * (len(content) - 1))
    return content[:place] + bytes([content[place] ^ (1 << number % 8)]) + content[place + 1 :]


def overwritten(content, at, number):
    """Eight bytes of 255, 0 or 127 in a row: what sizes and offsets look like that are far too large."""
    place = int(at * len(content))
    return content[:place] + bytes([(255, 0, 127)[number % 3]]) * 8 + content[place + 8 :]


def doubled(content, at, _):
    return content[: int(at * len(content))] + content


DAMAGE = st.lists(
    st.tuples(st.sampled_from([cut, flipped, flipped, overwritten, doubled]), st.floats(0, 1), st.integers(0, 255)),
    min_size=1,
    max_size=3,
)


def refusal(kind, file):
    """The sentence with which the file is refused, "" where it can be read."""
    try:
        kind.read(file)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore")  # those of the libraries about damage
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damage_anywhere_is_one_sentence(kind, tmp_path):
    file = tmp_path / kind.name
    file.parent.mkdir(parents=True, exist_ok=True)
    kind.write(file)
    kind.read(file)
    whole_content = file.read_bytes()

    @settings(
        max_examples=kind.examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(DAMAGE)
    def damaged(steps):
        content = whole_content
        for damage, at, number in steps:
            content = damage(content, at, number) or b"\0"
        file.write_bytes(content)
        sentence = refusal(kind, file)
        assert "\n" not in sentence
        assert not sentence or str(tmp_path) in sentence

    damaged()
