"""The networks against the official ones, with weights made by the same formula; names and sensing points."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from common.errors import UserError
from distill import models
from tests.distill import official

# Our name -> file, key, and the stored features that belong to it
STORED = {
    "resnet8": ("kd", "ResNet_Student", range(3)),
    "resnet32": ("kd", "ResNet_Teacher", range(3)),
    "wrn16_4": ("iep", "WResNet_Student_16_4", range(4)),
    "wrn40_4": ("iep", "WResNet_Teacher_40_4", range(4)),
    "vgg": ("sskd", "VGG_student", ()),
    "vgg_teacher": ("sskd", "VGG_teacher", ()),
    "mobilenet": ("sskd", "MobileNet_student_and_teacher", range(4)),
    "mobilenet_teacher": ("sskd", "MobileNet_student_and_teacher", range(4, 8)),
    "resnext": ("sskd", "ResNext_student", ()),
    "resnext_teacher": ("sskd", "ResNext_teacher", range(4)),
}
LARGE = ("resnet32", "wrn40_4", "vgg_teacher", "resnext_teacher")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in STORED])
def test_network_is_the_official_one(name):
    file, key, features = STORED[name]
    arrays = official.golden(f"networks_{file}")
    network, variables, names = official.build(name)
    if name.startswith("wrn"):
        network = network._replace(taps=("stem", "stage1", "stage2", "stage3"))
    stored = {entry.partition("|")[0]: entry.partition("|")[2] for entry in arrays[f"{key}/variables"]}
    ours = {n: ",".join(map(str, shape)) for n, shape in names.items()}
    with jax.default_matmul_precision("highest"):
        compiled = jax.jit(lambda v, x: models.run(network, v, x)[0])
        outputs = compiled(variables, jnp.asarray(arrays["image"]))
    if name.startswith("mobilenet"):  # both networks in one file, the teacher without its last layer
        scope = f"{official.SCOPES[name]}/"
        stored = {n: shape for n, shape in stored.items() if n.startswith(scope)}
        if name == "mobilenet_teacher":
            ours = {n: shape for n, shape in ours.items() if "full3" not in n}
    else:
        count = sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(variables.params))
        assert count == arrays[f"{key}/param_count"]
    assert ours == stored
    if name != "mobilenet_teacher":
        official.close(outputs.logits, arrays[f"{key}/logits"], 1e-3)
    for fm, i in zip(outputs.maps, features, strict=False):
        assert fm.shape == tuple(arrays[f"{key}/feature{i}_shape"])
        official.close(fm.mean((1, 2)), arrays[f"{key}/feature{i}_channel_mean"], 1e-3)
        official.close(jnp.abs(fm).mean(), arrays[f"{key}/feature{i}_mean_abs"], 1e-3)
    assert len(outputs.maps) == len(features) or not features
    for fm, raw in zip(outputs.maps, outputs.raw, strict=True):
        np.testing.assert_array_equal(fm, jax.nn.relu(raw))


def test_counts_of_mobilenet():
    counts = [
        sum(leaf.size for path, leaf in flatten_dict(official.build(name)[1].params).items() if keep(path))
        for name, keep in (("mobilenet", lambda path: True), ("mobilenet_teacher", lambda path: path[0] != "full"))
    ]
    assert sum(counts) == official.golden("networks_sskd")["MobileNet_student_and_teacher/param_count"]


@pytest.mark.parametrize("name", list(models.NETWORKS))
def test_every_network_has_sensing_points(name):
    network = models.make_network(name, 7, width=0.25, dropout=0.1)
    side = 64 if name.endswith("large") else 32
    outputs = models.output_shapes(network, (side, side, 3))
    assert outputs.logits.shape == (2, 7)
    assert len(outputs.maps) >= 3
    sides = [fm.shape[1] for fm in outputs.maps]
    assert sides == sorted(sides, reverse=True)
    assert [fm.shape for fm in outputs.maps] == [fm.shape for fm in outputs.raw]


@pytest.mark.slow
def test_training_mode_changes_statistics_and_drops():
    network = models.make_network("wrn10_4", 3, width=0.0625, dropout=0.5)
    variables = jax.jit(lambda key: models.init(network, key, (8, 8, 3)))(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    run = jax.jit(functools.partial(models.run, network))
    (one, state), (two, _) = (run(variables, images, jax.random.key(key)) for key in (2, 3))
    assert not np.allclose(one.logits, two.logits)
    assert not np.allclose(state["bn0"]["mean"], variables.state["bn0"]["mean"])
    quiet, same = run(variables, images)
    jax.tree.map(np.testing.assert_array_equal, same, variables.state)
    assert np.isfinite(quiet.logits).all()


def test_names_that_do_not_exist():
    with pytest.raises(UserError, match=r"config.student.network is 'resnett8', .*\(did you mean 'resnet8'\?\)"):
        models.make_network("resnett8", 3, field="student")
    with pytest.raises(UserError, match=r"config.teacher.width is 0.001, but must leave at least one channel"):
        models.make_network("resnet8", 3, width=0.001, field="teacher")
    network = models.make_network("resnet8", 3, taps=("stage4",))
    with pytest.raises(UserError, match=r"no sensing point 'stage4'.*; it has stage1, stage2, stage3"):
        models.output_shapes(network, (32, 32, 3))
