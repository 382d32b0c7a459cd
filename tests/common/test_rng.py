"""Keys are a function of seed, stream name and step, and of nothing else."""

import itertools

import jax
import numpy as np

from common import rng
from tests.common.toys import running


def bits(seed, name, step=0):
    return tuple(np.asarray(jax.random.key_data(rng.stream(seed, name, step))).tolist())


def test_keys_differ_by_seed_name_and_step():
    keys = {bits(*which) for which in itertools.product((0, 1, 2**32 - 1), ("batch", "step", "init"), (0, 1, 999))}
    assert len(keys) == 27


def test_traced_and_plain_arguments_give_the_same_key():
    traced = jax.jit(lambda seed, step: rng.stream(seed, "batch", step))
    for seed in (3, 2**31 + 5, 2**32 - 1):
        key = traced(np.uint32(seed), np.int32(17))
        assert tuple(np.asarray(jax.random.key_data(key)).tolist()) == bits(seed, "batch", 17)


def test_another_process_draws_the_same():
    program = "import jax; from common import rng; print(jax.random.key_data(rng.stream(7, 'refresh', 12)).tolist())"
    assert running.run_program(program).strip() == str(list(bits(7, "refresh", 12)))
