"""Who is drawn, how groups are aligned, and what a batch holds."""

import jax
import jax.numpy as jnp
import numpy as np

from fer import grouping, sampling


def test_drawn_identities_are_different_people_of_the_batch():
    identity = jnp.asarray([7, 2, 2, 5, 7, -1, 9, -1])
    draw = jax.jit(grouping.draw_identities, static_argnums=2)
    seen = set()
    for seed in range(60):
        picked, count = draw(jax.random.key(seed), identity, 3)
        chosen = np.asarray(picked).tolist()
        assert int(count) == len(set(chosen)) == 3
        assert set(chosen) <= {2, 5, 7, 9}
        seen.add(chosen[0])
    assert seen == {2, 5, 7, 9}  # anybody may be the reference
    picked, count = draw(jax.random.key(0), identity, 6)
    assert sorted(np.asarray(picked).tolist()) == [-1, -1, 2, 5, 7, 9]
    assert int(count) == 4
    picked, count = draw(jax.random.key(0), identity, 20)
    assert picked.shape == (20,)
    assert int(count) == 4
    nobody, count = draw(jax.random.key(0), jnp.full(4, -1), 2)
    assert int(count) == 0
    assert np.asarray(nobody).tolist() == [-1, -1]


def test_groups_and_filling():
    identity = jnp.asarray([4, 1, 4, 4, 0, 1])
    groups = grouping.make_groups(identity, jnp.asarray([1, 4, -1]))
    assert np.asarray(groups.members).tolist() == [[0, 1, 0, 0, 0, 1], [1, 0, 1, 1, 0, 0], [0] * 6]
    filled = grouping.max_filling(groups).members
    assert np.asarray(filled).tolist() == [[0, 1, 0, 0, 0, 2], [1, 0, 1, 1, 0, 0], [0] * 6]


def test_gumbel_draws_intense_frames():
    identity = jnp.asarray([0] * 6 + [1] * 2)
    groups = grouping.make_groups(identity, jnp.asarray([0, 1]))
    labels = jnp.asarray(
        [[0.9, 0.3], [0.0, 0.0], [0.1, 0.0], [0.5, -0.5], [0.0, 0.0], [0.3, 0.2], [0.2, 0.1], [0.0, 0.0]]
    )
    times = np.zeros(8)
    for seed in range(200):
        uniform = jax.random.uniform(jax.random.key(seed), (8,))
        drawn = grouping.gumbel_top_k(groups, labels, uniform, 3)
        sizes = np.asarray(drawn.members.sum(1)).tolist()
        assert sizes == [3, 2]  # a group smaller than top_k is taken whole
        times += np.asarray(drawn.members.sum(0))
        best = int(jnp.argmin(jnp.where(drawn.members[0] > 0, drawn.rank, jnp.inf)))
        assert drawn.members[0, best] == 1
    assert times[0] > times[5] > times[2] > times[1]
    assert times[1] == times[4] == 0  # V = A = 0 comes last, and four others are there


def test_age_bins():
    ages = jnp.asarray([17.9, 18.0, 29.9, 30.0, 59.0, 60.0, 84.9, 85.0, jnp.nan])
    assert np.asarray(grouping.age_bins(ages)).tolist() == [-1, 0, 0, 1, 3, 4, 4, -1, -1]


def test_balanced_batches():
    identity = np.array([3, 3, 3, 3, 3, 0, 0, 0, 0, 8, 8, -1])
    table, counts = sampling.frame_table(identity)
    assert counts.tolist() == [4, 5, 2]
    draw = jax.jit(sampling.balanced_batch, static_argnums=(3, 4))
    seen = set()
    for seed in range(40):
        places = np.asarray(draw(jax.random.key(seed), jnp.asarray(table), jnp.asarray(counts), 2, 4))
        people = identity[places].reshape(2, 4)
        assert (people == people[:, :1]).all()
        assert people[0, 0] != people[1, 0]
        for who, own in zip(people[:, 0], places.reshape(2, 4), strict=True):
            assert len(set(own)) == min(4, (identity == who).sum())
        seen |= set(places.tolist())
    assert seen == set(range(11))  # every frame of somebody, and not the last
