"""Class splits of metric learning, from few-shot sets and from sets of the catalogue prepared as toys."""

import io

import numpy as np
import pytest
from PIL import Image

from common.data import detection, retrieval
from common.errors import UserError


def picture(colour, width, height):
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    file.seek(0)
    return file


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Small 'cars196' (6 classes, 2 pictures of each in both splits) and 'voc' 2007, without TensorFlow."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")

    class Cars(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "cars196"
        VERSION = tfds.core.Version("2.1.0")

        def _info(self):
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=6)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in ("train", "test")}

        def _generate_examples(self, split):
            for label in range(6):
                for index in range(2):
                    yield f"{split}{label}{index}", {"image": picture((40 * label, 0, 0), 30, 20), "label": label}

    class Voc(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "voc"
        VERSION = tfds.core.Version("5.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2007")]  # noqa: RUF012

        def _info(self):
            thing = {
                "bbox": tfds.features.BBoxFeature(),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                "is_difficult": np.bool_,
            }
            features = {"image": tfds.features.Image(), "objects": tfds.features.Sequence(thing)}
            features["labels"] = tfds.features.Sequence(tfds.features.ClassLabel(names=["cat", "dog"]))
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in ("train", "validation", "test")}

        def _generate_examples(self, split):
            for count in range(3):  # so many objects
                things = [
                    {"bbox": tfds.features.BBox(0.1, 0.2, 0.5, 1.0), "label": "dog", "is_difficult": place == 1}
                    for place in range(count)
                ]
                labels = ["dog"] if count else []
                yield f"{split}{count}", {"image": picture((9, 9, 9), 30, 20), "objects": things, "labels": labels}

    for builder in (Cars, Voc):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_classes_of_the_catalogue_are_pooled_and_split_in_halves(prepared):
    data = retrieval.load("cars196", image_size=16, path=str(prepared))
    assert (data.train.class_names, data.test.class_names) == (("0", "1", "2"), ("3", "4", "5"))
    for split, first in ((data.train, 0), (data.test, 3)):
        np.testing.assert_array_equal(np.bincount(split.labels), [4, 4, 4])
        np.testing.assert_array_equal(split.images[:, 8, 8, 0], 40 * (split.labels + first))


def test_the_middle_square_is_taken():
    wide = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(3, 20))
    np.testing.assert_array_equal(np.asarray(retrieval.middle_square(wide)), np.asarray(wide)[:, 8:11])


def test_few_shot_sets_have_other_classes_to_test_on():
    options = {"instances_per_class": 20, "max_classes": 3, "difficulty": "easy"}
    data = retrieval.load("glyphs", image_size=16, options=options)
    assert not set(data.train.class_names) & set(data.test.class_names)
    assert data.test.images.shape == (60, 16, 16, 3)


def test_voc_is_read_with_difficult_objects_and_original_sizes(prepared):
    data = detection.load("voc2007", image_size=24, path=str(prepared))
    assert data.class_names == ("cat", "dog")
    assert data.train.images.shape == (6, 24, 24, 3)
    assert sorted((data.train.labels >= 0).sum(1)) == [0, 0, 1, 1, 2, 2]
    full = int(np.argmax((data.test.labels >= 0).sum(1)))
    np.testing.assert_allclose(data.test.boxes[full, 0], [0.1, 0.2, 0.5, 1.0])
    np.testing.assert_array_equal(data.test.difficult[full], [False, True])
    np.testing.assert_array_equal(data.test.sizes, [[20, 30]] * 3)


def test_missing_sets_are_named_at_once(prepared, tmp_path):
    with pytest.raises(UserError, match=r"'cars196' was not found .*--config.clustering.dataset=glyphs"):
        retrieval.load("cars196", image_size=16, path=str(tmp_path))
    with pytest.raises(UserError, match=r"'voc/2007' was not found .*--config.detection.dataset=shapes"):
        detection.load("voc2007", image_size=16, path=str(tmp_path))
    with pytest.raises(UserError, match=r"'voc/2012' was not found .*prepare --name=voc/2012"):
        detection.load("voc2007_2012", image_size=16, path=str(prepared))
    with pytest.raises(UserError, match=r"unknown data set for clustering 'car196' \(did you mean 'cars196'\?\)"):
        retrieval.load("car196", image_size=16)
    with pytest.raises(UserError, match="data set 'cars196' has no options, but 'difficulty' is set"):
        retrieval.load("cars196", image_size=16, path=str(prepared), options={"difficulty": "easy"})


def test_an_incomplete_set_is_named(prepared, tmp_path):
    import shutil

    shutil.copytree(prepared / "voc", tmp_path / "voc")
    next(tmp_path.rglob("voc-test.array_record*")).unlink()
    with pytest.raises(UserError, match=r"data set 'voc/2007' is incomplete, file .*voc-test.array_record"):
        detection.load("voc2007", image_size=16, path=str(tmp_path))
