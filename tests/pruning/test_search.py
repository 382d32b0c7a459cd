"""The search: every decision of the official one, three forms of evaluation, what must hold on the way."""

import functools
import itertools

import jax
import numpy as np
import pytest

from common.errors import UserError
from pruning import complexity, one_shot
from pruning.candidates import FORMS, Evaluator
from pruning.masks import keep_count, ranks
from pruning.models.cifar_resnet import cifar_resnet
from pruning.search import (
    Candidate,
    Search,
    Settings,
    begin,
    blank,
    check_target,
    current_logits,
    decide,
    first_best,
    greedy_step,
    most_steps,
    propose,
    ratio,
    split,
    step_share,
    total_scores,
)
from tests.pruning import networks
from tests.pruning.networks import golden

KEY = jax.random.key(0)


def make(graph, settings, side=32, form="prefix", batch_size=16):
    """A search; sizes are those of the golden one by default."""
    flops = functools.partial(complexity.flops_of, graph, side)
    return Search(graph, settings, flops, Evaluator(graph, form, batch_size, chunk=3))


def official(graph, **fields):
    trace = golden("search")
    settings = Settings(float(trace["target_rate"]), rates="official", normalise="official", **fields)
    return make(graph, settings, batch_size=int(trace["search_batch_size"]))


def at_step(search, step):
    """The official progress before this step."""
    trace = golden("search")
    progress = blank(search.graph, 24, search.settings)
    rates = trace["rates"][step - 1] if step else np.ones(30)
    counts = [keep_count(gate.channels, rate) for gate, rate in zip(search.graph.gates, rates, strict=True)]
    return progress._replace(
        ranks=trace["trace_rank"][max(step - 1, 0)].astype(np.int16),
        keeps=np.array(counts, np.int32),
        rates=rates.astype(np.float32),
        ensemble=trace["trace_ensemble"][step],
        length=np.int32(step + 1),
    )


def problem():
    """Images and labels of the golden D_val."""
    size = int(golden("search")["val_size"])
    return networks.images(size), golden("inputs")["labels"][:size].astype(np.int32)


@pytest.mark.parametrize("step", range(10))
def test_official_marks_and_candidates(step):
    """From the official importance: no network is needed."""
    search, trace = official(cifar_resnet(56, 10)), golden("search")
    scores = split(search.graph, trace["trace_importance"][step])
    np.testing.assert_array_equal(
        np.concatenate([ranks(scores[gate.name]) for gate in search.graph.gates]), trace["trace_rank"][step]
    )
    mass, threshold, candidates = propose(search, scores, at_step(search, step))
    np.testing.assert_allclose(mass, trace["marking_score"][step], rtol=1e-5, atol=1e-6)
    assert threshold == pytest.approx(trace["marking_threshold"][step], rel=1e-5)
    assert [candidate.gate for candidate in candidates] == np.flatnonzero(trace["marked"][step]).tolist()
    rates = [candidate.rate for candidate in candidates]
    np.testing.assert_allclose(rates, trace["candidate_rate"][step][trace["marked"][step]], rtol=0, atol=1e-9)


def test_official_costs_and_order_of_gates():
    graph, trace, gates = cifar_resnet(56, 10), golden("search"), golden("importance")
    channels = np.array([gate.channels for gate in graph.gates])
    np.testing.assert_array_equal(channels, gates["gate_sizes"])
    np.testing.assert_array_equal(np.cumsum([0, *channels]), gates["gate_offsets"])
    np.testing.assert_allclose(1 / channels, gates["fine_step"])  # of one channel
    np.testing.assert_array_equal(gates["rates_before_step2"], trace["rates"][1])
    whole = complexity.totals(graph, 32)
    assert (whole.flops, whole.params) == (trace["full_flops"], trace["full_params"])
    for rates, params in zip(trace["rates"], trace["params"], strict=True):
        keeps = {g.name: keep_count(g.channels, rate) for g, rate in zip(graph.gates, rates, strict=True)}
        assert complexity.totals(graph, 32, keeps).params == params


@pytest.mark.parametrize("step", [pytest.param(0, marks=pytest.mark.slow), 5, pytest.param(9, marks=pytest.mark.slow)])
def test_official_decision(resnet56, step):
    """Steps 5 and 6 choose among exact ties: gates whose next filters are all dead."""
    graph, variables = resnet56
    search, trace = official(graph), golden("search")
    scores = split(graph, trace["trace_importance"][step])
    progress, decision = decide(search, at_step(search, step), variables, *problem(), scores)
    marked = trace["marked"][step]
    for name, tolerance in (("score", 2e-5), ("loss", 2e-5), ("accuracy", 1e-6)):
        expected = trace[f"candidate_{name}"][step][marked]
        np.testing.assert_allclose(decision.measured[name], expected, rtol=0, atol=tolerance, err_msg=name)
    assert decision.candidates[decision.chosen].gate == trace["best_gate"][step]
    best, second = np.partition(decision.measured["score"], 1)[:2]
    np.testing.assert_allclose((second - best) / best, trace["relative_margin"][step], rtol=0, atol=1e-5)
    chosen = current_logits(search, progress, variables, problem()[0])
    np.testing.assert_allclose(chosen, trace["trace_chosen_logits"][step], rtol=0, atol=1e-4)
    if step == 0:
        np.testing.assert_allclose(chosen, trace["chosen_logits_step0"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(progress.rates, trace["rates"][step], rtol=0, atol=1e-6)
    flops = complexity.flops_of(graph, 32, np.asarray(progress.keeps)[None])[0]
    assert flops == pytest.approx(trace["flops"][step], rel=1e-6)
    row = progress.history[int(progress.length) - 1]
    assert row[0] == pytest.approx(trace["loss"][step], abs=2e-5)
    assert row[0] == pytest.approx(trace["history_loss"][step + 1], abs=2e-5)
    if step == 9:
        np.testing.assert_array_equal(progress.ranks, trace["final_rank"])
    following = trace["trace_ensemble"][step + 1] if step < 9 else trace["ensemble_logits_final"]
    np.testing.assert_allclose(progress.ensemble, following, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_official_beginning_and_importance(resnet56_float64):
    graph, variables = resnet56_float64
    search, expected = official(graph), golden("importance")
    images, labels = problem()
    images = np.asarray(images, np.float64)
    assert [gate.name for gate in graph.gates] == expected["gate_names"].tolist()
    assert [gate.uses for gate in graph.gates] == expected["gate_num_call"].tolist()
    np.testing.assert_allclose([step_share(g, search.settings) for g in graph.gates], expected["search_step"])
    progress = begin(search, blank(graph, 24, search.settings), variables, images, labels)
    np.testing.assert_allclose(progress.ensemble, expected["ensemble_logits_T0"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(progress.history[0, 0], golden("search")["initial"][1], rtol=0, atol=2e-5)
    for step in (0, 2):
        before = at_step(search, step)
        masks = {
            name: (rank < keep).astype(np.float32)
            for (name, rank), keep in zip(split(graph, before.ranks).items(), before.keeps, strict=True)
        }
        scores = total_scores(search, variables, masks, images, labels, before.ensemble, KEY)
        flat = np.concatenate([scores[gate.name] for gate in graph.gates])
        assert_same_importance(graph, flat, expected[f"score_step{step}"], expected[f"rank_step{step}"])


def assert_same_importance(graph, found, score, rank):
    """Ranks may differ where two scores are closer than 1e-4 of the largest."""
    np.testing.assert_allclose(found, score, rtol=0, atol=1e-4 * score.max())
    for name, ours in split(graph, found).items():
        theirs, official_rank = split(graph, score)[name], split(graph, rank)[name]
        ordered = theirs[np.argsort(ranks(ours))]
        np.testing.assert_allclose(ordered, theirs[np.argsort(official_rank)], rtol=0, atol=1e-4 * score.max())


@pytest.mark.slow
def test_official_search_without_help(resnet56):
    """Ten steps from nothing. A ReLU whose input is zero but for rounding moves importance by up to 0.3 % (in 64 bits
    the official value of step 3 is off too), so marks near the threshold may differ; the chosen gates do not."""
    graph, variables = resnet56
    search, trace = official(graph), golden("search")
    images, labels = problem()
    progress = begin(search, blank(graph, 24, search.settings), variables, images, labels)
    for step in range(10):
        progress, decision = greedy_step(search, progress, variables, images, labels, KEY)
        assert decision.candidates[decision.chosen].gate == trace["best_gate"][step]
    np.testing.assert_allclose(progress.rates, trace["rates"][-1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(progress.ensemble, trace["ensemble_logits_final"], rtol=0, atol=1e-4)
    assert ratio(search, progress.keeps) <= 0.93


@pytest.mark.slow
def test_official_search_with_the_marking_of_the_release(resnet56_float64):
    graph, variables = resnet56_float64
    search, trace = official(graph, marking="release"), golden("search_head_marking")
    images, labels = problem()
    images = np.asarray(images, np.float64)
    progress = begin(search, blank(graph, 24, search.settings), variables, images, labels)
    for step in range(2):
        progress, decision = greedy_step(search, progress, variables, images, labels, KEY)
        np.testing.assert_allclose(decision.mass, trace["marking_score"][step], rtol=1e-4)
        assert decision.threshold == pytest.approx(trace["marking_threshold"][step], rel=1e-4)
        assert [c.gate for c in decision.candidates] == np.flatnonzero(trace["marked"][step]).tolist()
        assert decision.candidates[decision.chosen].gate == trace["best_gate"][step]
        np.testing.assert_allclose(progress.rates, trace["rates"][step], rtol=0, atol=1e-6)


# --- a small network ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    """(graph, variables, images, labels): ResNet-14 of 4 channels, 11 pixels, two batches of 3."""
    graph = cifar_resnet(14, 3, width=4)
    params, stats = networks.variables(graph, 11)
    images = networks.formula("small images", 6, 11, 11, 3)
    return graph, {"params": params, "batch_stats": stats}, jax.device_put(images), np.arange(6, dtype=np.int32) % 3


def small_search(graph, form="prefix", **fields):
    return make(graph, Settings(**{"target": 0.5, **fields}), 11, form, 3)


def run(search, small, steps=100):
    _, variables, images, labels = small
    progress = begin(search, blank(search.graph, 6, search.settings), variables, images, labels)
    decisions = []
    while ratio(search, progress.keeps) > search.settings.target and len(decisions) < steps:
        progress, decision = greedy_step(search, progress, variables, images, labels, KEY)
        decisions.append(decision)
    return progress, decisions


def test_three_forms_of_evaluation_agree(small):
    graph, variables, images, _ = small
    masks = {gate.name: (np.arange(gate.channels) < 3).astype(np.float32) for gate in graph.gates}
    changes = [(gate.name, (np.arange(gate.channels) % 3 != 1).astype(np.float32)) for gate in graph.gates]
    found = [Evaluator(graph, form, 3, chunk=4)(variables, images, masks, changes) for form in FORMS]
    assert np.abs(found[0] - found[0][:1]).max() > 0.1  # candidates differ
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=0, atol=2e-5)


def test_search_reaches_its_target_and_not_much_more(small):
    graph = small[0]
    search = small_search(graph)
    progress, decisions = run(search, small)
    length = int(progress.length)
    assert length == len(decisions) + 1 <= most_steps(graph, search.settings)
    kept = [ratio(search, keeps) for keeps in progress.history_keeps[:length]]
    assert kept[0] == 1
    assert all(later < before for before, later in itertools.pairwise(kept))
    assert kept[-1] <= 0.5 < kept[-2]
    gate = int(progress.history_gate[length - 1])
    one_more = progress.keeps + np.eye(len(graph.gates), dtype=np.int32)[gate]
    assert ratio(search, one_more) > 0.5  # the last step took no channel too many
    assert decisions[-1].measured["score"].min() == decisions[-1].measured["score"][decisions[-1].chosen]


def test_nothing_is_compiled_after_the_first_step(small, compiled):
    search = small_search(small[0])
    run(search, small, steps=1)
    before = compiled()
    _, decisions = run(search, small)
    assert len(decisions) > 5
    assert len({len(decision.candidates) for decision in decisions}) > 1  # not even for another number of candidates
    assert compiled() == before


def test_ensemble_holds_every_network_so_far(small):
    graph, variables, images, _ = small
    search = small_search(graph)
    progress, _ = run(search, small, steps=3)
    rows = [
        {
            name: (rank < keep).astype(np.float32)
            for (name, rank), keep in zip(split(graph, progress.history_ranks[i]).items(), keeps, strict=True)
        }
        for i, keeps in enumerate(progress.history_keeps[: int(progress.length)])
    ]
    logits = [search.evaluator(variables, images, masks, [("conv", masks["conv"])])[0] for masks in rows]
    np.testing.assert_allclose(progress.ensemble, np.mean(logits, 0), rtol=0, atol=1e-5)


def test_teachers_of_the_ablation(small):
    whole, _ = run(small_search(small[0], teacher="single"), small, steps=2)
    first = begin(small_search(small[0]), blank(small[0], 6, Settings(0.5)), *small[1:])
    np.testing.assert_array_equal(whole.ensemble, first.ensemble)
    alone, decisions = run(small_search(small[0], teacher="none"), small, steps=1)
    np.testing.assert_array_equal(decisions[0].measured["loss"], decisions[0].measured["score"])
    assert alone.history[1, 0] == alone.history[1, 1]


def test_down_to_one_channel_in_every_gate(small):
    graph = small[0]
    fewest = ratio(small_search(graph), np.ones(len(graph.gates), np.int32))
    search = small_search(graph, target=fewest, marking="all", step=1.0)
    check_target(search)
    progress, _ = run(search, small)
    assert np.all(progress.keeps == 1)
    assert np.isfinite(progress.history).all()
    with pytest.raises(UserError, match="No gate can give up another channel"):
        greedy_step(search, progress, *small[1:], KEY)


def test_target_below_what_can_be_reached(small):
    with pytest.raises(UserError, match=r"search.target is 0.001, but with one channel in every gate .* has 0.0"):
        check_target(small_search(small[0], target=0.001))


def test_official_fine_search_walks_in_two_decimals():
    """Gate 1 of ResNet-20 has 16 channels: 0.8 overshoots; 0.8625 looks like 0.86, which keeps 14 as well."""
    graph = cifar_resnet(20, 10)
    scores = {gate.name: np.ones(gate.channels, np.float32) for gate in graph.gates}
    kept = ratio(make(graph, Settings(0.5)), [14 if i == 1 else gate.channels for i, gate in enumerate(graph.gates)])
    for target, expected in ((kept - 1e-6, (13, 0.8)), (kept + 1e-6, (14, 0.8625))):
        search = make(graph, Settings(target, rates="official", marking="all"))
        candidate = propose(search, scores, blank(graph, 1, search.settings))[2][1]
        assert candidate == Candidate(1, *expected)


def test_ties_go_to_the_first_gate():
    assert first_best(np.array([3.0, 1.0 + 1e-9, 1.0, 2.0])) == 1
    assert first_best(np.array([3.0, 1.0 + 1e-5, 1.0])) == 2


@pytest.mark.parametrize("allocation", one_shot.ALLOCATIONS)
@pytest.mark.parametrize("criterion", ["l1", "random"])
def test_pruned_at_once(small, allocation, criterion):
    graph, variables, images, labels = small
    search = small_search(graph, criterion=criterion)
    progress = begin(search, blank(graph, 6, search.settings), variables, images, labels)
    pruned = one_shot.prune(search, allocation, progress, variables, images, labels, KEY)
    kept = ratio(search, pruned.keeps)
    assert 0.3 < kept <= 0.5
    assert int(pruned.length) == 2
    if allocation == "uniform":
        shares = pruned.keeps / search.channels
        assert shares.max() - shares.min() < 0.5
    first = split(graph, pruned.ranks)["conv"]
    again = one_shot.prune(search, allocation, progress, variables, images, labels, jax.random.key(1))
    assert (first.tolist() == split(graph, again.ranks)["conv"].tolist()) == (criterion == "l1")
