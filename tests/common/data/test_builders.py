"""Our builders under the test case that tensorflow-datasets has for builders; it needs TensorFlow (`make data`)."""

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
        self.assertEqual(prepare.load_builder(self.name), self.DATASET_CLASS)


for name, trees in TREES.items():
    for tree in trees:
        title = f"{name} {tree}".title().replace("_", "").replace(" ", "")
        counts = {"train": 16 if tree == "published" else 12, "validation": 8, "test": 8}
        fields = {"name": name, "tree": tree, "DATASET_CLASS": prepare.load_builder(name), "SPLITS": counts}
        globals()[f"Test{title}"] = type(f"Test{title}", (_BuilderTest,), fields)
del _BuilderTest  # which has no data set
