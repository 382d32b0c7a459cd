"""The slim network computes what the masked one does; the official slicing of the real checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from pruning import complexity, official_weights, slim
from pruning.graph import narrow
from pruning.models import ARCHITECTURES
from pruning.models.cifar_resnet import cifar_resnet
from pruning.models.network import Network
from tests.pruning import networks, reference
from tests.pruning.networks import every_kind, jit, logits

RESNET56 = cifar_resnet(56, 10)


@pytest.fixture(scope="module")
def golden_slim():
    """(golden arrays, parameters, statistics, kept indices)."""
    arrays = networks.shared("slim")
    params, batch_stats = official_weights.read(networks.shared_file("res56_cifar10_weights"), RESNET56)
    ends = np.cumsum([gate.channels for gate in RESNET56.gates])[:-1]
    rank = dict(zip([gate.name for gate in RESNET56.gates], np.split(arrays["rank"], ends), strict=True))
    return arrays, params, batch_stats, slim.keep_indices(RESNET56, rank, networks.keep(RESNET56, arrays["rates"]))


def test_golden_slices(golden_slim):
    arrays, params, batch_stats, kept = golden_slim
    for name, indices in kept.items():
        np.testing.assert_array_equal(indices, arrays[f"keep|{name}"], err_msg=name)
    new, _ = slim.slice_variables(RESNET56, params, batch_stats, kept)
    kernels = {placed.name: new[placed.path[0]][placed.path[1]]["kernel"] for placed in RESNET56.layers}
    kernels["fc"] = new["fc"]["kernel"]
    for name, shape, norm in zip(
        arrays["layers"], arrays["slim_kernel_shapes"], arrays["slim_kernel_norms"], strict=True
    ):
        expected = shape[shape > 0] if name != "fc" else shape[-2:]
        assert kernels[name].shape == tuple(expected), name
        assert np.linalg.norm(np.asarray(kernels[name], np.float64)) == pytest.approx(norm, rel=1e-5), name
    for name in ("conv", "BasicBlock1.0/conv3", "BasicBlock0.1/conv1", "fc"):
        np.testing.assert_allclose(kernels[name], arrays[f"kernel|{name}"], rtol=1e-5, atol=1e-7, err_msg=name)
    totals = complexity.totals(RESNET56, 32, slim.widths(kept))
    assert totals == (arrays["slim_flops"], arrays["slim_params"])
    assert totals == (arrays["masked_flops"], arrays["masked_params"])


@pytest.mark.parametrize("mode", ["eval", "batchstats"])
def test_golden_logits(golden_slim, mode):
    arrays, params, batch_stats, kept = golden_slim
    x, batch_statistics = networks.images(6), mode == "batchstats"
    gate_masks = slim.masks_of(RESNET56, kept)
    masked = logits(RESNET56, params, batch_stats, x, gate_masks, batch_statistics)
    np.testing.assert_allclose(masked, arrays[f"logits_masked_{mode}"], rtol=0, atol=1e-4)
    graph = narrow(RESNET56, slim.widths(kept))
    new = slim.slice_variables(RESNET56, params, batch_stats, kept)
    found = logits(graph, *new, x, batch_statistics=batch_statistics)
    np.testing.assert_allclose(found, arrays[f"logits_slim_{mode}"], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def small():
    """(graph, params, batch_stats, images, masked logits in both modes) of the network with every kind of block."""
    graph = every_kind()
    params, batch_stats = networks.variables(graph, 20)
    x = jnp.asarray(networks.formula("images", 3, 20, 20, 3))

    @jit
    def masked(gate_masks):
        return [logits(graph, params, batch_stats, x, gate_masks, mode) for mode in (False, True)]

    return graph, params, batch_stats, x, masked


GATES = len(every_kind().gates)
RATES = st.lists(st.floats(0, 1, width=32), min_size=GATES, max_size=GATES)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rates=RATES, seed=st.integers(0, 1000))
def test_masked_is_slim(small, rates, seed):
    """With inference and with batch statistics, for 100 vectors of rates, 0 and 1 among them.

    The slim network is computed by NumPy in 64 bit, since every vector would compile another program; the next test
    compiles some.
    """
    graph, params, batch_stats, x, masked = small
    narrowed, new, gate_masks = made_slim(graph, params, batch_stats, rates, seed)
    for mode, found in zip((False, True), masked(gate_masks), strict=True):
        expected = reference.forward(narrowed, *new, x, mode)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("rates", [[0.0] * GATES, [0.6] * GATES, [1.0, 0.3] * (GATES // 2) + [1.0] * (GATES % 2)])
def test_masked_is_slim_in_compiled_programs(small, rates):
    graph, params, batch_stats, x, masked = small
    narrowed, new, gate_masks = made_slim(graph, params, batch_stats, rates, 0)
    found = jit(lambda new, x: [logits(narrowed, *new, x, batch_statistics=mode) for mode in (False, True)])(new, x)
    for one, other in zip(found, masked(gate_masks), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * max(1, np.abs(other).max()))


def made_slim(graph, params, batch_stats, rates, seed):
    """(slim graph, its variables, the masks of the same channels)."""
    kept = slim.keep_indices(graph, networks.ranks(graph, seed), networks.keep(graph, rates))
    new = slim.slice_variables(graph, params, batch_stats, kept)
    return narrow(graph, slim.widths(kept)), new, slim.masks_of(graph, kept)


@pytest.mark.parametrize("name", ["mobilenet_v2", "imagenet_resnet50"])
def test_slim_shapes_are_those_of_the_narrowed_network(name):
    graph = ARCHITECTURES[name](10, 3)
    shapes = jax.eval_shape(lambda: Network(graph).init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    whole = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    kept = slim.keep_indices(graph, networks.ranks(graph), networks.keep(graph, np.full(len(graph.gates), 0.3)))
    sliced = slim.slice_variables(graph, whole["params"], whole["batch_stats"], kept)
    narrowed = narrow(graph, slim.widths(kept))
    wanted = jax.eval_shape(lambda: Network(narrowed).init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    assert jax.tree.map(lambda leaf: leaf.shape, sliced) == jax.tree.map(
        lambda leaf: leaf.shape, (wanted["params"], wanted["batch_stats"])
    )


def test_statistics_are_the_mean_of_the_batches(small):
    """After one batch, inference is what batch statistics give; after two, the stem's are the mean of both."""
    graph, params, batch_stats, x, _ = small
    narrowed, (new, inherited), _ = made_slim(graph, params, batch_stats, [0.5] * GATES, 0)
    stats = slim.recalibrate_bn(narrowed, new, inherited, [x])
    expected = reference.forward(narrowed, new, inherited, x, True)
    np.testing.assert_allclose(reference.forward(narrowed, new, stats, x), expected, rtol=0, atol=1e-4)

    second = 2 * x + 1
    both = slim.recalibrate_bn(narrowed, new, inherited, [x, second])["stem"]["bn"]
    pair = [reference.convolve(images, new["stem"]["conv"]["kernel"], 2) for images in (x, second)]
    np.testing.assert_allclose(both["mean"], np.mean([np.mean(y, (0, 1, 2)) for y in pair], 0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(both["var"], np.mean([np.var(y, (0, 1, 2)) for y in pair], 0), rtol=1e-4)


def test_statistics_need_images(small):
    with pytest.raises(UserError, match="give at least one batch"):
        slim.recalibrate_bn(*small[:3], [])


ROUNDED = st.lists(st.floats(0, 1, width=32), min_size=12, max_size=12)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(rates=ROUNDED, round_to=st.sampled_from([2, 5, 8]), share=st.floats(0.3, 1))
def test_rounded_widths(rates, round_to, share):
    """Multiples or full widths, within the target, and none that was below its wish could still grow."""
    graph = cifar_resnet(20, 10)
    keep = networks.keep(graph, rates)
    full = complexity.totals(graph, 32).flops
    widths = slim.round_widths(graph, 32, keep, round_to, share)
    assert list(widths) == [gate.name for gate in graph.gates]
    for gate in graph.gates:
        width = widths[gate.name]
        assert 1 <= width <= gate.channels
        assert width % round_to == 0 or width == gate.channels
        if width < keep[gate.name]:
            wider = {**widths, gate.name: min(width // round_to * round_to + round_to, gate.channels)}
            assert complexity.totals(graph, 32, wider).flops > share * full
    assert complexity.totals(graph, 32, widths).flops <= share * full


def test_rounded_widths_stay_near_where_they_fit():
    graph = cifar_resnet(8, 10)
    keep = {gate.name: gate.channels // 2 + 1 for gate in graph.gates}
    assert slim.round_widths(graph, 32, keep, 1, 0.01) == keep
    halves = {gate.name: gate.channels // 2 for gate in graph.gates}
    share = complexity.totals(graph, 32, halves).flops / complexity.totals(graph, 32).flops
    assert slim.round_widths(graph, 32, keep, 8, share + 1e-9) == halves
    assert slim.round_widths(graph, 32, dict.fromkeys(keep, 13), 16, 1.0) == dict.fromkeys(keep, 16)


@pytest.mark.parametrize(
    ("round_to", "target", "message"),
    [(0, 0.5, "round_to is 0, but must be at least 1"), (16, 0.05, "16 channels in every gate cost more than 5.0%")],
)
def test_rounding_that_cannot_be(round_to, target, message):
    graph = cifar_resnet(8, 10)
    with pytest.raises(UserError, match=message):
        slim.round_widths(graph, 32, {gate.name: 16 for gate in graph.gates}, round_to, target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rank, keep: keep.update(conv=0), "width of gate conv is 0, but must lie between 1 and 16"),
        (lambda rank, keep: keep.update(conv=17), "width of gate conv is 17"),
        (lambda rank, keep: keep.pop("conv"), "no width of gate 'conv'"),
        (
            lambda rank, keep: keep.update(konv=3),
            r"a width of gate 'konv', which the network lacks \(did you mean 'conv",
        ),
        (lambda rank, keep: rank.update(conv=np.zeros(16, int)), "rank of gate conv is no permutation"),
        (lambda rank, keep: rank.update(conv=np.arange(8)), "rank of gate conv is no permutation"),
    ],
)
def test_choices_that_cannot_be(change, message):
    graph = cifar_resnet(8, 10)
    rank, counts = networks.ranks(graph), {gate.name: 3 for gate in graph.gates}
    change(rank, counts)
    with pytest.raises(UserError, match=message):
        slim.keep_indices(graph, rank, counts)
