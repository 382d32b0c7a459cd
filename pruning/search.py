"""EKG's greedy search: in every step the gate whose next filters cost the least gives them up, until the FLOPs fit.

    scores -> ranks -> marked gates -> one candidate per marked gate -> score on D_val -> the best one stays
                 ^                                                             |
                 +------------ ensemble of the logits of all networks so far --+

Everything is decided on the host between compiled pieces; widths and masks are their arguments, so nothing is compiled
after the first step. Source: paper, Algorithm 1; official code (spec section 5) for what the paper leaves open.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from common.errors import UserError
from pruning import marking
from pruning.candidates import Evaluator
from pruning.graph import Gate, Graph
from pruning.importance import Evidence, gate_scores
from pruning.masks import keep_count, mask, ranks
from pruning.objective import divisor, measure, update_ensemble

RATES = ("exact", "official")
TIE = 1e-7  # relative: candidates this close count as equal, and the first is taken
DECIMALS = 5  # of the official code's rates

Flops = Callable[[Int[np.ndarray, "k g"]], Int[np.ndarray, " k"]]  # channels kept in every gate -> FLOPs


class Settings(NamedTuple):
    """What a search is asked for."""

    target: float  # FLOPs to keep, as a share of the whole network's
    step: float = 0.2  # r: share of a private gate's channels that go at once
    criterion: str = "taylor"
    marking: str = "scores"  # or "release" (the official slice along the wrong axis), "all" (every gate)
    teacher: str = "ensemble"  # or "single" (the whole network), "none"
    rates: str = "exact"  # whole channels; "official": rates rounded to 5 decimals, fine search to 2
    normalise: str = "samples"  # or "official"


class Progress(NamedTuple):
    """All that a search changes, in fixed shapes. Row i of the history is the network after i steps."""

    ranks: Any  # int16 [sum of channels], of the current network, gates in order
    keeps: Any  # int32 [g]
    rates: Any  # float32 [g]; the official code's state, keeps / channels in exact mode
    ensemble: Any  # float32 [n, classes]
    length: Any  # int32 [], rows of the history in use
    history_ranks: Any  # int16 [s, sum of channels]
    history_keeps: Any  # int32 [s, g]
    history_gate: Any  # int32 [s], that gave channels up; -1 in row 0
    history: Any  # float32 [s, 3]: loss, score, accuracy on D_val


class Candidate(NamedTuple):
    gate: int
    keep: int
    rate: float


class Decision(NamedTuple):
    """Why a step took what it took; for reports and tests."""

    mass: Float[np.ndarray, " g"]
    threshold: float
    candidates: list[Candidate]
    measured: dict[str, Float[np.ndarray, " k"]]  # loss, score, accuracy of the candidates
    chosen: int  # place among the candidates


class Search(NamedTuple):
    """What is fixed before the first step."""

    graph: Graph
    settings: Settings
    flops: Flops
    evaluator: Evaluator

    @property
    def channels(self) -> Int[np.ndarray, " g"]:
        """Channels of every gate."""
        return np.array([gate.channels for gate in self.graph.gates])


def step_share(gate: Gate, settings: Settings) -> float:
    """Share of the gate's channels that a step takes: max(1 / C, r / uses); in exact mode a whole number of them."""
    share = max(1 / gate.channels, settings.step / gate.uses)
    return share if settings.rates == "official" else max(1, round(share * gate.channels)) / gate.channels


def most_steps(graph: Graph, settings: Settings) -> int:
    """No search takes more steps: every gate down to one channel, and fine steps of the official code's rounding."""
    return sum(int(np.ceil(1 / step_share(gate, settings))) + 1 for gate in graph.gates)


def check_target(search: Search) -> None:
    """Raise UserError if not even one channel per gate gets the FLOPs down to the target."""
    lowest, whole_flops = search.flops(np.stack([np.ones_like(search.channels), search.channels]))
    if lowest > search.settings.target * whole_flops:
        raise UserError(
            f"config.search.target is {search.settings.target:g}, but with one channel in every gate the network still "
            f"has {lowest / whole_flops:.4g} of its FLOPs; choose a target above that."
        )


def blank(graph: Graph, images: int, settings: Settings) -> Progress:
    """Before the first look at D_val, which has so many images."""
    gates, total, rows = graph.gates, sum(g.channels for g in graph.gates), most_steps(graph, settings) + 1
    keeps = np.array([gate.channels for gate in gates], np.int32)
    identity = np.concatenate([np.arange(gate.channels) for gate in gates]).astype(np.int16)
    return Progress(
        ranks=identity,
        keeps=keeps,
        rates=np.ones(len(gates), np.float32),
        ensemble=np.zeros((images, graph.num_classes), np.float32),
        length=np.int32(0),
        history_ranks=np.zeros((rows, total), np.int16),
        history_keeps=np.zeros((rows, len(gates)), np.int32),
        history_gate=np.full(rows, -1, np.int32),
        history=np.zeros((rows, 3), np.float32),
    )


def split(graph: Graph, flat: Any) -> dict[str, np.ndarray]:
    """[sum of channels] -> gate name -> [c]."""
    ends = np.cumsum([gate.channels for gate in graph.gates])[:-1]
    parts = np.split(np.asarray(flat), ends)
    return {gate.name: part for gate, part in zip(graph.gates, parts, strict=True)}


def masks_of(graph: Graph, flat_ranks: Any, keeps: Any) -> dict[str, Float[np.ndarray, " _"]]:
    """The masks of a network of the history."""
    return {name: mask(rank, keep) for (name, rank), keep in zip(split(graph, flat_ranks).items(), keeps, strict=True)}


def begin(
    search: Search, progress: Progress, variables: Any, images: Float[Any, "n h w c"], labels: Int[Any, " n"]
) -> Progress:
    """Row 0: the whole network, whose logits begin the ensemble.

    The official code stores the rates of the last candidate of its first step there (spec section 11, 3).
    """
    logits = current_logits(search, progress, variables, images)
    return _record(progress._replace(ensemble=logits), -1, _measure(search, logits[None], labels, None), 0)


def append(
    search: Search, progress: Progress, variables: Any, images: Float[Any, "n h w c"], labels: Int[Any, " n"]
) -> Progress:
    """A row of the history for the current network, however it was found."""
    logits = current_logits(search, progress, variables, images)
    return _record(progress, -1, _measure(search, logits[None], labels, None), 0)


def current_logits(
    search: Search, progress: Progress, variables: Any, images: Float[Any, "n h w c"]
) -> Float[np.ndarray, "n classes"]:
    """Logits of the current network."""
    masks = masks_of(search.graph, progress.ranks, progress.keeps)
    gate = search.graph.gates[0].name
    return search.evaluator(variables, images, masks, [(gate, masks[gate])])[0]


def greedy_step(
    search: Search,
    progress: Progress,
    variables: Any,
    images: Float[Any, "n h w c"],
    labels: Int[Any, " n"],
    key: Array,
) -> tuple[Progress, Decision]:
    """One gate gives up channels. Raises UserError if none can."""
    masks = masks_of(search.graph, progress.ranks, progress.keeps)
    teacher = None if search.settings.teacher == "none" else np.asarray(progress.ensemble)
    scores = total_scores(search, variables, masks, images, labels, teacher, key)
    return decide(search, progress, variables, images, labels, scores)


def decide(
    search: Search,
    progress: Progress,
    variables: Any,
    images: Float[Any, "n h w c"],
    labels: Int[Any, " n"],
    scores: Mapping[str, Float[np.ndarray, " _"]],
) -> tuple[Progress, Decision]:
    """A step whose importance scores are given: candidates, their score on D_val, and the best of them."""
    graph, settings = search.graph, search.settings
    teacher = None if settings.teacher == "none" else np.asarray(progress.ensemble)
    rank = {name: ranks(score) for name, score in scores.items()}
    mass, threshold, candidates = propose(search, scores, progress)
    changes = [(graph.gates[c.gate].name, mask(rank[graph.gates[c.gate].name], c.keep)) for c in candidates]
    progress = progress._replace(ranks=np.concatenate([rank[g.name] for g in graph.gates]).astype(np.int16))
    current = masks_of(graph, progress.ranks, progress.keeps)
    logits = search.evaluator(variables, images, current, changes)
    measured = _measure(search, logits, labels, teacher)
    chosen = first_best(measured["score"])
    best = candidates[chosen]
    ensemble = progress.ensemble
    if settings.teacher == "ensemble":
        ensemble = update_ensemble(np.asarray(ensemble), int(progress.length), logits[chosen])
    progress = progress._replace(
        keeps=_replaced(progress.keeps, best.gate, best.keep),
        rates=_replaced(progress.rates, best.gate, best.rate),
        ensemble=ensemble,
    )
    return _record(progress, best.gate, measured, chosen), Decision(mass, threshold, candidates, measured, chosen)


def total_scores(
    search: Search,
    variables: Any,
    masks: Mapping[str, Any],
    images: Float[Any, "n h w c"],
    labels: Int[Any, " n"],
    teacher: Float[np.ndarray, "n classes"] | None,
    key: Array,
) -> dict[str, Float[np.ndarray, " _"]]:
    """Scores of the criterion, summed over the batches of D_val."""
    size, totals = search.evaluator.batch_size, {}
    divided = divisor(search.settings.normalise, len(images), size) if search.settings.criterion == "taylor" else 1.0
    if search.settings.normalise == "official":
        divided /= -(-len(images) // size)  # the official scores are of batches, not of their mean
    for first in range(0, len(images), size):
        part = slice(first, first + size)
        some = None if teacher is None else teacher[part]
        evidence = Evidence(variables, masks, images[part], labels[part], some, key)
        for name, score in jax.device_get(gate_scores(search.graph, search.settings.criterion, evidence)).items():
            totals[name] = totals.get(name, 0.0) + score / np.float32(divided)
    return totals


def propose(
    search: Search, scores: Mapping[str, Float[np.ndarray, " _"]], progress: Progress
) -> tuple[Float[np.ndarray, " g"], float, list[Candidate]]:
    """Score mass of what would go next, the threshold of marking, and a candidate for each marked gate, in order."""
    graph, settings = search.graph, search.settings
    rates, keeps = current_rates(search, progress), np.asarray(progress.keeps)
    shares = np.array([step_share(gate, settings) for gate in graph.gates])
    release = settings.marking == "release"
    mass = marking.next_mass([scores[gate.name] for gate in graph.gates], rates, shares, release)
    marked, threshold = marking.mark(mass, settings.marking)
    make = _official_candidate if settings.rates == "official" else _exact_candidate
    candidates = [make(search, int(i), rates, keeps, float(shares[i])) for i in np.flatnonzero(marked)]
    if not candidates:
        raise UserError("No gate can give up another channel, but the FLOPs are above config.search.target.")
    return mass, threshold, candidates


def current_rates(search: Search, progress: Progress) -> Float[np.ndarray, " g"]:
    """float64 rates as `propose` uses them: 0 marks a gate that is exhausted."""
    if search.settings.rates == "official":
        return np.round(np.asarray(progress.rates, np.float64), DECIMALS)
    keeps = np.asarray(progress.keeps)
    return np.where(keeps > 1, keeps / search.channels, 0.0)


def _exact_candidate(search: Search, gate: int, rates: Any, keeps: Any, share: float) -> Candidate:
    """Whole channels; at the end only as many as the target asks for."""
    del rates
    channels = int(search.channels[gate])
    lowest = max(int(keeps[gate]) - round(share * channels), 1)
    counts = np.arange(int(keeps[gate]) - 1, lowest - 1, -1)
    fits = _ratios(search, keeps, gate, counts) <= search.settings.target
    keep = int(counts[np.argmax(fits)]) if fits.any() else lowest
    return Candidate(gate, keep, keep / channels)


def _official_candidate(search: Search, gate: int, rates: Any, keeps: Any, share: float) -> Candidate:
    """Rates of 5 decimals. Below the target: walk up channel by channel and take the last rate that stays below.

    The walk looks at rates rounded to 2 decimals (1/64 is 0.02 there), but what it takes is not rounded to 2.
    """
    channels, target = int(search.channels[gate]), search.settings.target
    rate = max(round(float(rates[gate]) - share, DECIMALS), 0.0)
    if _ratios(search, keeps, gate, np.array([keep_count(channels, rate)]))[0] < target:
        for more in np.arange(rate, rate + search.settings.step, 1 / channels):
            walked = round(float(more), 2)
            if _ratios(search, keeps, gate, np.array([keep_count(channels, walked)]))[0] > target:
                rate = max(round(float(more) - 1 / channels, DECIMALS), 0.0)
                break
    return Candidate(gate, keep_count(channels, rate), rate)


def _ratios(search: Search, keeps: Any, gate: int, counts: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """FLOPs, as a share of the whole network's, with so many channels in one gate."""
    rows = np.repeat(np.asarray(keeps, np.int64)[None], len(counts), 0)
    rows[:, gate] = counts
    return search.flops(rows) / search.flops(search.channels[None])


def ratio(search: Search, keeps: Any) -> float:
    """FLOPs as a share of the whole network's."""
    return float(_ratios(search, keeps, 0, np.asarray(keeps)[:1])[0])


def first_best(scores: Float[np.ndarray, " k"]) -> int:
    """Place of the lowest score; of scores that are equal but for rounding, the first.

    Ties are real: gates with several dead filters can all give one up without any change of the score.
    """
    return int(np.argmax(scores <= scores.min() + TIE * abs(scores.min())))


def _measure(
    search: Search, logits: Float[np.ndarray, "k n classes"], labels: Any, teacher: Any
) -> dict[str, Float[np.ndarray, " k"]]:
    found = measure(logits, np.asarray(labels), teacher)
    divided = divisor(search.settings.normalise, len(labels), search.evaluator.batch_size)
    return {name: value if name == "accuracy" else value / divided for name, value in found.items()}


def _record(progress: Progress, gate: int, measured: Mapping[str, np.ndarray], chosen: int) -> Progress:
    row = int(progress.length)
    values = np.array([measured[name][chosen] for name in ("loss", "score", "accuracy")], np.float32)
    return progress._replace(
        length=np.int32(row + 1),
        history_ranks=_replaced(progress.history_ranks, row, progress.ranks),
        history_keeps=_replaced(progress.history_keeps, row, progress.keeps),
        history_gate=_replaced(progress.history_gate, row, gate),
        history=_replaced(progress.history, row, values),
    )


def _replaced(array: Any, place: int, value: Any) -> np.ndarray:
    changed = np.array(array)
    changed[place] = value
    return changed
