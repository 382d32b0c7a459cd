"""The phases of every config, built and traced; what of the data each of them sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill import experiment
from tests.distill import cli

PHASES = {
    "student": ("student",),
    "teacher": ("teacher",),
    "dml": ("student",),
    **dict.fromkeys(("fitnet", "fsp", "ab"), ("teacher", "initialisation", "student")),
    **dict.fromkeys(("ft", "mhgd", "iepkt"), ("teacher", "modules", "student")),
    **dict.fromkeys(("soft_logits", "at", "rkd", "vid", "sskd_svd"), ("teacher", "student")),
}


def test_every_config_is_in_the_table():
    assert sorted(PHASES) == cli.CONFIGS
    assert set(PHASES) - {"student", "teacher"} | {"none"} == set(experiment.FILES)


@pytest.mark.parametrize("name", cli.CONFIGS)
def test_phases_of_every_config(name):
    """Each phase's step keeps the shapes of its state, and says what it lost."""
    own = cli.config(name)
    found = cli.built_phases(own)
    assert tuple(found) == PHASES[name]
    key = jax.random.key(0)
    for phase, built in found.items():
        state = jax.eval_shape(built.init, built.data, key)
        batch = jax.eval_shape(built.batch, {**built.data, "seed": jnp.uint32(0)}, state.step, key)
        after, sums = jax.eval_shape(built.train_step, state, built.data, batch, key)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state), phase
        assert "loss" in sums
        assert ("accuracy" in sums) == (phase != "modules")


def test_given_teacher_and_other_stages():
    names = [phase.name for phase in experiment.phases(cli.config("mhgd", teacher_checkpoint="somewhere"))]
    assert names == ["modules", "student"]
    names = [phase.name for phase in experiment.phases(cli.config("sskd_svd", stages="two_stage"))]
    assert names == ["teacher", "initialisation", "student"]


def test_fields_of_the_phases():
    own = cli.config("mhgd", module_learning_rate=0.3, teacher_steps=20, num_steps=10, decay_shares=(0.5, 0.75))
    teacher, modules, student = (phase.overrides for phase in experiment.phases(own))
    assert (teacher["num_steps"], teacher["optimizer.decay_steps"]) == (20, (10, 15))
    assert (student["num_steps"], student["optimizer.decay_steps"]) == (10, (5, 7))
    assert (modules["optimizer.schedule"], modules["optimizer.learning_rate"]) == ("constant", 0.3)
    assert modules["best_metric"] == "loss"


def test_few_samples_are_the_student_s_alone():
    found = cli.built_phases(cli.config("mhgd", sample_share=0.25))
    assert {phase: len(built.data["images"]) for phase, built in found.items()} == {
        "teacher": 64,
        "modules": 16,
        "student": 16,
    }
    assert np.bincount(found["student"].data["labels"]).tolist() == [2] * 8
    other = cli.built_phases(cli.config("mhgd", sample_share=0.25, seed=1))
    assert not np.array_equal(other["student"].data["images"], found["student"].data["images"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sskd_svd", "rkd"])
def test_cached_knowledge_is_the_computed_one(name):
    fields = {"augmentation.crop_padding": 0, "student.network": "resnet8", "teacher.width": 0.03125}
    cached = cli.built_phases(cli.config(name, cache_teacher=True, **fields | {"student.width": 0.03125}))["student"]
    plain = cli.built_phases(cli.config(name, **fields | {"student.width": 0.03125}))["student"]
    batch, key = jnp.arange(8), jax.random.key(1)
    state = jax.jit(plain.init)(plain.data, key)
    steps = [jax.jit(built.train_step)(state, built.data, batch, key) for built in (cached, plain)]
    assert "knowledge" in cached.data
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *steps)
