import subprocess
import sys

import pytest

from common.data import load, names
from common.errors import UserError

CALL = {"task": "classification", "image_size": 28, "channels": 1}


def test_names():
    assert {"glyphs", "digits", "fashion_mnist", "folder", "cifar10", "omniglot", "mini_imagenet"} <= set(names())
    assert "omniglot" not in names("classification")
    assert "digits" not in names("fewshot")


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("gylphs", {}, r"unknown data set 'gylphs' \(did you mean 'glyphs'\?\); known are: glyphs"),
        ("zzzz", {}, r"cifar_fs\.$"),
        ("digits", {"task": "few-shot"}, r"unknown task 'few-shot' \(did you mean 'fewshot'\?\)"),
        ("digits", {"task": "fewshot"}, "'digits' cannot be used for fewshot, only for classification; .*glyphs"),
        ("omniglot", {}, "'omniglot' cannot be used for classification, only for fewshot; .*digits"),
        ("digits", {"channels": 2}, "channels must be 1 .* or 3 .* is 2"),
        ("digits", {"image_size": 4}, "at least 8 pixels, but is 4"),
        ("digits", {"seed": -1}, "must not be negative, but is -1"),
        ("digits", {"options": {"rotation": 3}}, "'digits' has no option 'rotation'; its options are: none"),
        ("digits", {"path": "somewhere"}, "leave dataset_path empty instead of 'somewhere'"),
        ("cifar10", {"options": {"x": 1}}, "'cifar10' has no option 'x'"),
    ],
)
def test_error_sentences(name, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        load(name, **{**CALL, **changes})


@pytest.mark.parametrize(
    "name", ["mini_imagenet", "tiered_imagenet", "cub_200_2011", "cifar_fs", "tiny_imagenet", "imagenet32"]
)
def test_sets_that_are_not_prepared_say_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    command = f"python -m common.data.prepare --name={name} --manual_dir="
    task = "classification" if name in ("tiny_imagenet", "imagenet32") else "fewshot"
    with pytest.raises(UserError) as caught:
        load(name, task=task, image_size=84, channels=3)
    for part in (f"'{name}' was not found", str(tmp_path / name), command, "--config.dataset=glyphs"):
        assert part in str(caught.value)


def test_import_loads_no_source():
    heavy = ["jax", "matplotlib", "sklearn", "tensorflow_datasets", "fontTools"]
    code = f"import sys, common.data; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
