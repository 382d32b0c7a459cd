"""What a user can get wrong is answered in one sentence, before anything slow is done."""

import re
import shutil

import pytest

from common import phases
from common.errors import UserError
from distill import experiment
from distill.augmentation import Augmentation
from tests.distill import cli


def refused(message, name="at", **fields):
    with pytest.raises(UserError, match=message) as caught:
        cli.built_phases(cli.config(name, **fields))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("at", {"method": "att"}, r"config.method is 'att', but must be one of .*\(did you mean 'at'\?\)"),
        ("at", {"method": "rkd"}, "config.options.beta is no option of method 'rkd'; it has angle, distance"),
        ("student", {"method": "at"}, "config.options.beta is missing: method 'at' needs it"),
        ("at", {"phase": "students"}, r"config.phase .*\(did you mean 'student'\?\)"),
        ("at", {"stages": "both"}, "config.stages is 'both', but must be one of 'joint', 'two_stage'"),
        ("at", {"merge_rule": "tool"}, "config.merge_rule is 'tool', but must be one of 'toolbox', 'eccv'"),
        ("at", {"decay": "kernel"}, r"config.decay .*\(did you mean 'kernels'\?\)"),
        ("at", {"student.network": "resnet9"}, "config.student.network is 'resnet9', but must be one of"),
        ("at", {"teacher.width": 0.0}, "config.teacher.width is 0.0, but must be a number above 0"),
        ("at", {"teacher.width": 0.01}, "config.teacher.width is 0.01, but must leave at least one channel"),
        ("at", {"student.dropout": 1.0}, "config.student.dropout is 1.0"),
        ("at", {"student.taps": ("stage1", "stage9")}, r"no sensing point 'stage9' \(did you mean 'stage3'\?\)"),
        ("at", {"student.taps": ("stage1",)}, "the student has 1 sensing points and the teacher 3"),
        ("vid", {"student.taps": ("stage1", "stage2")}, "the student has 2 sensing points and the teacher 3"),
        ("fsp", {"teacher.width": 0.125}, "FSP compares Gram matrices .* must be the same"),
        ("fsp", {"student.taps": ("stage1",), "teacher.taps": ("stage1",)}, "must be the same and at least one"),
        ("ft", {"teacher.width": 0.02}, "has 5 channels, but FT needs at least 8"),
        (
            "sskd_svd",
            {"options.form": "eccv", "options.vectors": 5, "student.width": 0.04},
            "config.options.vectors is 5",
        ),
        ("sskd_svd", {"student.taps": ("stage1",), "teacher.taps": ("stage1",)}, "at least 2"),
        ("mhgd", {"options.heads": 1}, "config.options.heads is 1, but must be at least 2"),
        ("iepkt", {"options.terms": ("graph",)}, "config.options.terms is .*must be one or several of"),
        ("soft_logits", {"options.temperature": 0.0}, "config.options.temperature is 0.0, but must be above 0"),
        ("soft_logits", {"options.weight": 2.0}, r"config.options.weight is 2.0, but must lie in 0..1"),
        ("at", {"num_steps": 0}, "config.num_steps is 0, but must be a number above 0"),
        ("at", {"module_steps": 0}, "config.module_steps is 0"),
        ("at", {"batch_size": 65}, "config.batch_size is 65, but must be at most 64, the images that are trained on"),
        ("at", {"sample_share": 0.0}, "config.sample_share is 0.0"),
        ("at", {"sample_share": 1.5}, "config.sample_share is 1.5"),
        ("at", {"decay_shares": (0.8, 0.5)}, r"config.decay_shares is \(0.8, 0.5\), but must be rising"),
        ("at", {"weight_decay": -1.0}, "config.weight_decay is -1.0, but must not be negative"),
        ("at", {"cache_teacher": True}, "config.cache_teacher is True, but must be False where images are augmented"),
        ("dml", {"cache_teacher": True, "augmentation.crop_padding": 0}, "must be False with method 'dml'"),
        ("at", {"mean": (0.5,)}, r"config.mean is \(0.5,\), but must be empty \(measured\) or have 3 numbers"),
        ("at", {"selection": "train"}, "config.selection is 'train', but must be one of 'test', 'held_out'"),
        ("at", {"keep_best": 0}, "config.keep_best is 0, but must be 1"),
        ("at", {"dataset_path": "here"}, "leave dataset_path empty"),
        ("at", {"teacher_checkpoint": "nowhere"}, "config.teacher_checkpoint is 'nowhere', but there is no trained"),
    ],
)
def test_value_that_cannot_work(name, fields, message):
    refused(message, name, **fields)


def test_few_samples_that_fill_no_batch():
    refused("config.batch_size is 32, but must be at most 16, the images", sample_share=0.25, batch_size=32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flip": 2.0}, "config.augmentation.flip is 2.0"),
        ({"rotation": -1.0}, "config.augmentation.rotation is -1.0"),
        ({"crop_padding": -1}, "config.augmentation.crop_padding is -1"),
        ({"crop_mode": "wrap"}, "config.augmentation.crop_mode is 'wrap', but must be 'reflect' or 'constant'"),
    ],
)
def test_augmentation_that_cannot_be(fields, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Augmentation((0.5,), (0.2,), **fields)


@pytest.mark.parametrize("variant", ["cifar100", "cifar100_wrn", "tiny_imagenet", "imagenet32"])
def test_published_variants_say_which_data_are_missing(variant, tmp_path, monkeypatch):
    from distill.configs import mhgd

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    config = mhgd.get_config(variant)
    first = experiment.phases(config)[0]
    with pytest.raises(UserError, match=f"data set {config.dataset!r} was not found .*--config.dataset=glyphs"):
        first.build(phases.phase_config(config, first), {})


@pytest.mark.slow
def test_teacher_that_does_not_fit(finished, tmp_path):
    teacher = str(finished.folder)
    fits = cli.built_phases(cli.config("at", teacher_checkpoint=teacher))
    assert list(fits) == ["student"]
    refused("does not fit config.teacher .* number of classes", teacher_checkpoint=teacher, **{"glyphs.num_classes": 9})
    refused("does not fit config.teacher", teacher_checkpoint=teacher, **{"teacher.network": "resnet14"})
    refused("does not fit config.teacher", teacher_checkpoint=teacher, **{"teacher.width": 0.125})
    refused("is none of a teacher", teacher_checkpoint=str(finished.folder / "modules"))
    shutil.copytree(finished.folder / "teacher", tmp_path / "teacher")
    for file in (tmp_path / "teacher" / "checkpoints").glob("*/state/**/*"):
        if file.is_file():
            file.write_bytes(b"")
    refused(r"teacher/checkpoints/\d cannot be read", teacher_checkpoint=str(tmp_path))


def test_command_line(tmp_path):
    _, error = cli.run("--config=distill/configs/at.py:smok", f"--workdir={tmp_path / 'run'}", code=2)
    assert "variant 'smok' does not exist (did you mean 'smoke'?)" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
