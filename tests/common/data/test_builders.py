"""Our builders under the test case that tensorflow-datasets has for builders; it needs TensorFlow (`make data`)."""

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("tensorflow", reason="the builders' own test case needs TensorFlow: run `make data`")
    import tensorflow_datasets as tfds

from common.data import prepare
from tests.common.data.dummy_sets import TREES

pytestmark = pytest.mark.filterwarnings("default")


class _BuilderTest(tfds.testing.DatasetBuilderTestCase):
    """The checks of tensorflow-datasets on dummy data of one tree."""

    name: str
    tree: str
    MOCK_OUT_FORBIDDEN_OS_FUNCTIONS = False  # they are of the local disk, on purpose

    @classmethod
    def setUpClass(cls):
        folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        TREES[cls.name][cls.tree](Path(folder))
        cls.EXAMPLE_DIR = folder
        super().setUpClass()

    def test_registered(self):
        """Ours are loaded by `prepare`, and so not in the list that tfds goes by."""
        assert prepare.load_builder(self.name) is self.DATASET_CLASS


for name, trees in TREES.items():
    for tree in trees:
        title = f"{name} {tree}".title().replace("_", "").replace(" ", "")
        counts = {"train": 16 if tree == "published" else 12, "validation": 8, "test": 8}
        fields = {"name": name, "tree": tree, "DATASET_CLASS": prepare.load_builder(name), "SPLITS": counts}
        globals()[f"Test{title}"] = type(f"Test{title}", (_BuilderTest,), fields)
del _BuilderTest  # which has no data set


def test_reading_does_not_load_tensorflow(tmp_path):
    """Here, where it is installed."""
    TREES["mini_imagenet"]["folders"](tmp_path / "given")
    prepare.prepare("mini_imagenet", tmp_path, str(tmp_path / "given"))
    program = (
        "import sys; from common.data import load\n"
        "load('mini_imagenet', task='fewshot', image_size=16, channels=3, path=sys.argv[1])\n"
        "print('tensorflow_datasets' in sys.modules, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
