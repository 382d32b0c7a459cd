"""A user's own tree: what is read, and what is said where something is amiss."""

import re

import numpy as np
import pytest
from PIL import Image

from common.data import anomaly, prepare
from common.data.anomaly import Frame
from common.errors import UserError
from tests.common.data.anomaly import trees

FRAME = Frame(32, (32, 32))


def load(root, frame=FRAME, name="folder", category="", **options):
    return anomaly.load(name, category, frame, path=str(root), options=options)


def refused(message, root, frame=FRAME, **more):
    with pytest.raises(UserError, match=message) as caught:
        load(root, frame, **more)
    assert "\n" not in str(caught.value)


def test_mvtec_tree(tmp_path):
    data = load(trees.mvtec_tree(tmp_path))
    assert data.train.shape == (6, 32, 32, 3)
    assert data.defects == ("crack", "crack", "dent", "dent", "good", "good")
    assert data.files[0] == "test/crack/000.png"
    assert data.labels.tolist() == [1, 1, 1, 1, 0, 0]
    assert data.masks is not None
    assert data.masks.any(axis=(1, 2)).tolist() == [True] * 4 + [False] * 2
    assert anomaly.count_training_images("folder", "", path=str(tmp_path)) == 6
    assert data.summary().endswith("6 good images to train on; test images: 2 crack, 2 dent, 2 good; with pixel masks.")


def test_category_is_a_sub_folder(tmp_path):
    trees.mvtec_tree(tmp_path / "bolt")
    assert len(load(tmp_path, category="bolt").train) == 6
    refused("the folder .*nut does not exist; check .*and --config.category", tmp_path, category="nut")


def test_mvtec_ad_by_name(tmp_path):
    trees.mvtec_tree(tmp_path / "bottle")
    data = load(tmp_path, name="mvtec_ad", category="bottle")
    assert data.name == "mvtec_ad/bottle"
    assert data.licence == "CC BY-NC-SA 4.0"
    refused(r"MVTec AD was not found \(looked for .*screw/train/good, .*\): download it from mvtec.com.*"
            "--config.dataset=textures", tmp_path, name="mvtec_ad", category="screw")  # fmt: skip
    refused(r"has no category 'botle' \(did you mean 'bottle'\?\)", tmp_path, name="mvtec_ad", category="botle")


def test_prepared_mvtec_ad_is_read_as_its_tree_is(tmp_path, capsys):
    tree = trees.mvtec_tree(tmp_path / "given" / "bottle").parent
    prepare.prepare("mvtec_ad", tmp_path / "tfds", str(tree))
    assert "Careful" not in capsys.readouterr().out
    one, other = (
        load(tree, name="mvtec_ad", category="bottle"),
        load(tmp_path / "tfds", name="mvtec_ad", category="bottle"),
    )
    for field in ("name", "defects", "files", "licence"):
        assert getattr(one, field) == getattr(other, field)
    for field in ("train", "test", "labels", "masks"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    assert anomaly.count_training_images("mvtec_ad", "bottle", path=str(tmp_path / "tfds")) == 6
    refused(
        "has no split 'cable_train': delete it and prepare all", tmp_path / "tfds", name="mvtec_ad", category="cable"
    )


def test_plain_folders(tmp_path):
    for index in range(10):
        trees.write(tmp_path / "good" / f"{index}.jpg", 100 + 10 * index)
    trees.write(tmp_path / "bad" / "x.bmp")
    trees.write(tmp_path / "broken" / "y.webp")
    data = load(tmp_path, good_test_share=0.3)
    assert len(data.train) == 7
    assert data.defects == ("good", "good", "good", "bad", "broken")
    assert data.masks is None
    again = load(tmp_path, good_test_share=0.3)
    np.testing.assert_array_equal(data.train, again.train)
    other = anomaly.load("folder", "", FRAME, path=str(tmp_path), seed=1, options={"good_test_share": 0.3})
    assert (data.train != other.train).any()


def test_without_any_defects(tmp_path):
    for index in range(5):
        trees.write(tmp_path / "good" / f"{index}.png")
    data = load(tmp_path)
    assert (len(data.train), data.labels.tolist()) == (4, [0])


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "P", "1", "CMYK"])
def test_any_kind_of_picture(mode, tmp_path):
    suffix = "tif" if mode == "CMYK" else "png"
    file = trees.write(tmp_path / f"a.{suffix}", 100, mode=mode)
    plain = FRAME.image(Image.open(trees.write(tmp_path / "b.png", 100)), "b")
    got = FRAME.image(Image.open(file), "a")
    assert got.shape == (32, 32, 3)
    assert got.dtype == np.uint8
    if mode not in ("1", "P"):  # dithered or with few colours
        assert np.abs(got.astype(int) - plain).max() <= 3


@pytest.mark.parametrize("level", [1, 255])
def test_masks_of_zeros_and_ones_count_as_well(level, tmp_path):
    file = trees.write_mask(tmp_path / "mask.png", (36, 36), level)
    mask = Frame(0, (36, 36)).mask(Image.open(file), "mask")
    assert mask.sum() == 12 * 12


def test_masks_of_sixteen_bits_and_of_other_levels(tmp_path):
    pixels = np.zeros((20, 20), np.uint16)
    for level in (1, 255, 40_000):
        pixels[5:9] = level
        Image.fromarray(pixels).save(tmp_path / "mask.png")
        assert Frame(0, (20, 20)).mask(Image.open(tmp_path / "mask.png"), "mask").sum() == 4 * 20, level
    pixels[5:9] = 3  # the number of a class
    for dtype in (np.uint8, np.uint16):
        with pytest.raises(UserError, match="mask x is nowhere white, its largest value is 3: use 0 and 255"):
            Frame(0, (20, 20)).mask(Image.fromarray(pixels.astype(dtype)), "x")
    assert not Frame(0, (20, 20)).mask(Image.new("RGBA", (20, 20), (0, 0, 0, 255)), "black").any()


def test_frame_is_that_of_torchvision():
    frame = Frame(32, (30, 40))
    assert frame.resized(60, 90) == (32, 48)
    assert frame.resized(90, 60) == (48, 32)
    assert frame.resized(31, 47) == (32, 48)
    assert Frame(256, (224, 224)).offset(256, 256) == (16, 16)
    assert Frame(0, (10, 10)).resized(77, 55) == (77, 55)


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_no_good_images(tmp_path):
    (tmp_path / "train" / "good").mkdir(parents=True)
    refused(f"no good images to learn from in {re.escape(str(tmp_path))}: put them into", tmp_path)
    refused("needs the folder of your images: set --config.dataset_path", "")


def test_mask_of_another_size(tmp_path):
    trees.mvtec_tree(tmp_path)
    file = trees.write_mask(tmp_path / "ground_truth" / "dent" / "001_mask.png", (40, 30))
    refused(f"mask {re.escape(str(file))} has 40 x 30 pixels, but its picture .*001.png has 40 x 36", tmp_path)


def test_missing_mask(tmp_path):
    trees.mvtec_tree(tmp_path)
    file = tmp_path / "ground_truth" / "crack" / "000_mask.png"
    file.unlink()
    refused(f"the mask {re.escape(str(file))} of .*crack/000.png is missing: add it, or remove", tmp_path)


def test_damaged_picture(tmp_path):
    trees.mvtec_tree(tmp_path)
    file = tmp_path / "train" / "good" / "003.png"
    file.write_bytes(file.read_bytes()[:70])
    refused(f"picture {re.escape(str(file))} cannot be read .*: replace or remove it", tmp_path)


def test_picture_of_floating_point_numbers(tmp_path):
    trees.mvtec_tree(tmp_path)
    Image.fromarray(np.zeros((36, 40), np.float32)).save(tmp_path / "train" / "good" / "x.tif")
    refused("picture .*x.tif holds floating-point numbers: save it with 8 or 16 bits", tmp_path)


def test_picture_smaller_than_the_crop(tmp_path):
    trees.mvtec_tree(tmp_path)
    message = "picture .*000.png has 40 x 36 pixels, which is smaller than the crop of 64 x 64"
    refused(message, tmp_path, Frame(0, (64, 64)))
    refused("has 40 x 36 pixels, 71 x 64 after resizing, which is smaller", tmp_path, Frame(64, (64, 80)))


def test_unknown_names(tmp_path):
    refused(r"unknown anomaly data set 'foldr' \(did you mean 'folder'\?\)", tmp_path, name="foldr")
    refused("has no option 'good_share'", trees.mvtec_tree(tmp_path), good_share=0.1)
    refused(r"'good_test_share' .* must lie in 0\.\.1", tmp_path, good_test_share=1.5)
