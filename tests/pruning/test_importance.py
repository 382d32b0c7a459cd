"""Criteria against finite differences and their own definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pruning.importance import CRITERIA, Evidence, gate_scores
from pruning.models.network import Network, tap_gates
from pruning.objective import score_sum
from tests.pruning import networks
from tests.pruning.networks import every_kind, jit


def make_evidence(dtype):
    """Of a network that has every kind of block; one channel of the stem is masked."""
    graph = every_kind()
    params, stats = networks.variables(graph, 16)
    masks = {gate.name: np.ones(gate.channels) for gate in graph.gates}
    masks["conv"][1] = 0
    images = networks.formula("importance", 4, 16, 16, 3)
    arrays = ({"params": params, "batch_stats": stats}, masks, images)
    variables, masks, images = jax.tree.map(lambda array: jnp.asarray(array, dtype), arrays)
    teacher = jnp.asarray(networks.formula("teacher", 4, 3), dtype)
    return graph, Evidence(variables, masks, images, jnp.array([0, 1, 2, 1]), teacher, jax.random.key(0))


@pytest.fixture(scope="module")
def evidence():
    return make_evidence(np.float32)


def test_taylor_is_the_slope_of_the_score(float64):
    graph, seen = make_evidence(np.float64)
    scores = gate_scores(graph, "taylor", seen)
    gates = tap_gates(graph)
    network = Network(graph, batch_statistics=True)

    @jit
    def score(taps):
        logits = network.apply(seen.variables, seen.images, seen.masks, taps)
        return score_sum(logits, seen.labels, seen.teacher)

    ones = {name: np.ones(graph.gate(gate).channels) for name, gate in gates.items()}
    expected = {gate.name: np.zeros(gate.channels) for gate in graph.gates}
    step = 1e-6
    for name, gate in gates.items():
        for channel, unit in enumerate(np.eye(len(ones[name]))):
            values = [float(score({**ones, name: 1 + sign * step * unit})) for sign in (1, -1)]
            expected[gate][channel] += abs(values[0] - values[1]) / (2 * step)
    for name, slope in expected.items():
        np.testing.assert_allclose(scores[name], slope, rtol=1e-5, atol=1e-7, err_msg=name)
    assert max(float(score.max()) for score in scores.values()) > 0.5


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_scores_every_gate_and_no_masked_channel(evidence, criterion):
    graph, seen = evidence
    scores = gate_scores(graph, criterion, seen)
    assert {name: score.shape for name, score in scores.items()} == {g.name: (g.channels,) for g in graph.gates}
    assert scores["conv"][1] == 0
    assert all((score >= 0).all() for score in scores.values())


def test_criteria_of_kernels_add_up_the_members_of_a_group(evidence):
    graph, seen = evidence
    params = jax.tree.map(np.asarray, seen.variables["params"])
    block = params["BasicBlock1.0"]
    members = [block["conv3"], block["conv2"]]  # the projection and the branch end in one gate
    l1 = sum(np.abs(member["kernel"]).sum((0, 1, 2)) for member in members)
    np.testing.assert_allclose(gate_scores(graph, "l1", seen)["BasicBlock1.0/conv3"], l1, rtol=1e-5)
    gamma = np.abs(block["bn3"]["scale"]) + np.abs(block["bn2"]["scale"])
    np.testing.assert_allclose(gate_scores(graph, "bn_gamma", seen)["BasicBlock1.0/conv3"], gamma, rtol=1e-6)
    filters = [member["kernel"].reshape(-1, 3).T for member in members]
    distances = sum(np.linalg.norm(f[:, None] - f[None], axis=-1).sum(1) for f in filters)
    np.testing.assert_allclose(gate_scores(graph, "fpgm", seen)["BasicBlock1.0/conv3"], distances, rtol=1e-4)


def test_random_scores_follow_the_key(evidence):
    graph, seen = evidence
    one, same = (gate_scores(graph, "random", seen)["conv"] for _ in range(2))
    np.testing.assert_array_equal(one, same)
    other = gate_scores(graph, "random", seen._replace(key=jax.random.key(1)))["conv"]
    assert not np.array_equal(one, other)
