"""FLOPs and parameters against the official counts, and against what the traced programs multiply."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.cost import count_macs, count_parameters
from common.errors import UserError
from pruning import complexity
from pruning.graph import narrow
from pruning.models import ARCHITECTURES
from pruning.models.cifar_resnet import cifar_resnet
from pruning.models.network import Network
from tests.pruning.networks import every_kind, golden, keep

RESNET56 = cifar_resnet(56, 10)


@pytest.mark.parametrize("case", ["full", "masked0", "masked1", "masked2"])
def test_golden_layers(case):
    arrays = golden("complexity")
    assert [gate.name for gate in RESNET56.gates] == list(arrays["gate_names"])
    rates = np.ones(30) if case == "full" else arrays["rates"][int(case[-1])]
    widths = keep(RESNET56, rates)
    if case != "full":
        assert list(widths.values()) == list(arrays[f"{case}_keep"])
    costs = complexity.layer_costs(RESNET56, 32, widths)
    assert list(costs) == list(arrays["layers"])
    assert [cost.flops for cost in costs.values()] == list(arrays[f"{case}_flops"])
    assert [cost.params for cost in costs.values()] == list(arrays[f"{case}_params"])


def test_golden_totals():
    for depth, classes, side, flops, params in golden("complexity")["reference_totals"]:
        name = f"imagenet_resnet{int(depth)}" if side == 224 else f"resnet{int(depth)}"
        totals = complexity.totals(ARCHITECTURES[name](int(classes), 3), int(side))
        assert totals.flops == pytest.approx(flops, rel=1e-6)
        assert totals.params == params


def test_golden_units():
    """Of 7 channels 4 are kept before, of 9 channels 6 behind the convolution."""
    arrays = golden("units")
    ins, outs = int(arrays["conv_in_mask"].sum()), int(arrays["conv_out_mask"].sum())
    conv = complexity.convolution(3 * 3, 3 * 3, ins, outs)
    assert conv == (arrays["conv_flops"], arrays["conv_params"])
    assert complexity.convolution(5 * 6, 3 * 3, 1, ins) == (arrays["dw_flops"], arrays["dw_params"])
    assert complexity.dense(ins, 4) == (arrays["fc_flops"], arrays["fc_params"])
    assert complexity.normalisation(3 * 3, 5) == (arrays["bn_flops"], arrays["bn_params"])


def test_mobilenet_v2_is_the_one_of_the_authors_earlier_code():
    """That code reports 82.56 MFLOPs and 2.27 M parameters, and counts BatchNorm twice as EKG does."""
    graph = ARCHITECTURES["mobilenet_v2"](10, 3)
    ekg, macs = (complexity.totals(graph, 32, count=count) for count in complexity.COUNTS)
    assert macs.flops + 2 * (ekg.flops - macs.flops) == pytest.approx(82.56e6, abs=0.005e6)
    assert ekg.params == pytest.approx(2.27e6, abs=0.005e6)


@pytest.mark.parametrize(
    ("name", "side"),
    [("resnet20", 33), ("imagenet_resnet18", 224), ("imagenet_resnet50", 97), ("mobilenet_v2", 32)],
)
@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_formula_is_what_the_program_multiplies(name, side, rate):
    """Of the network itself, full and narrowed, in both numbers of the convention `macs`."""
    graph = ARCHITECTURES[name](10, 3)
    widths = keep(graph, np.full(len(graph.gates), rate))
    network, shapes = Network(narrow(graph, widths)), {}

    def init(key):  # traced once, for the shapes and for the multiplications of the forward pass in it
        out, made = network.init_with_output(key, jnp.zeros((1, side, side, 3)))
        shapes.update(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), dict(made)))
        return out

    counted = count_macs(init, jax.random.key(0))
    totals = complexity.totals(graph, side, widths, "macs")
    assert totals.flops == counted
    assert totals.params == count_parameters(shapes["params"])
    ekg = complexity.totals(graph, side, widths)
    assert ekg.params == totals.params + count_parameters(shapes["batch_stats"])


def test_candidates_are_counted_at_once():
    graph = every_kind()
    random = np.random.default_rng(0)
    keeps = np.stack([random.integers(1, gate.channels + 1, 20) for gate in graph.gates], axis=1)
    for count in complexity.COUNTS:
        found = complexity.flops_of(graph, 20, keeps, count)
        assert found.dtype == np.int64
        for row, flops in zip(keeps, found, strict=True):
            widths = {gate.name: int(width) for gate, width in zip(graph.gates, row, strict=True)}
            assert flops == complexity.totals(graph, 20, widths, count).flops


def test_fewer_channels_never_cost_more():
    graph = every_kind()
    full = complexity.totals(graph, 20)
    for gate in graph.gates:
        flops = [complexity.totals(graph, 20, {gate.name: width}).flops for width in range(1, gate.channels + 1)]
        assert flops == sorted(set(flops))
        assert flops[-1] == full.flops


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": {"conv": 0}}, r"width of gate conv is 0, but must lie between 1 and 4"),
        ({"widths": {"conv": np.array([4, 5])}}, r"width of gate conv is \[4 5\]"),
        ({"widths": {"conv4": 1}}, r"no gate 'conv4' \(did you mean 'conv'\?\)"),
        ({"count": "fvcore"}, r"count is 'fvcore', but must be one of ekg, macs"),
    ],
)
def test_what_cannot_be_counted(arguments, message):
    with pytest.raises(UserError, match=message):
        complexity.totals(every_kind(), 20, **arguments)
