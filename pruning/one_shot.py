"""Pruning all at once, as the methods do that EKG is compared with: one rate for all gates, or one threshold."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from pruning.masks import ranks
from pruning.search import Progress, Search, append, masks_of, total_scores

ALLOCATIONS = ("uniform", "global")


def prune(
    search: Search,
    allocation: str,
    progress: Progress,
    variables: Any,
    images: Float[Any, "n h w c"],
    labels: Int[Any, " n"],
    key: Array,
) -> Progress:
    """The network that keeps the channels of highest score, one row in the history."""
    masks = masks_of(search.graph, progress.ranks, progress.keeps)
    teacher = None if search.settings.teacher == "none" else np.asarray(progress.ensemble)
    scores = total_scores(search, variables, masks, images, labels, teacher, key)
    keeps = (uniform if allocation == "uniform" else threshold)(search, scores)
    flat = np.concatenate([ranks(scores[gate.name]) for gate in search.graph.gates]).astype(np.int16)
    progress = progress._replace(
        ranks=flat, keeps=keeps.astype(np.int32), rates=(keeps / search.channels).astype(np.float32)
    )
    return append(search, progress, variables, images, labels)


def uniform(search: Search, scores: Mapping[str, Float[np.ndarray, " _"]]) -> Int[np.ndarray, " g"]:
    """The same share of every gate (L1, Li et al. 2017; FPGM, He et al. 2019): the largest that fits the target."""
    del scores
    shares = np.linspace(1.0, 0.0, 1001)[:, None]
    return _first_that_fits(search, np.maximum(np.round(shares * search.channels), 1).astype(np.int64))


def threshold(search: Search, scores: Mapping[str, Float[np.ndarray, " _"]]) -> Int[np.ndarray, " g"]:
    """Channels above one threshold for all gates, and each gate's best (BN gamma, Liu et al. 2017)."""
    values = np.unique(np.concatenate(list(scores.values())))
    rows = [[max(int((scores[g.name] > value).sum()), 1) for g in search.graph.gates] for value in values]
    return _first_that_fits(search, np.array([search.channels.tolist(), *rows], np.int64))


def _first_that_fits(search: Search, rows: Int[np.ndarray, "k g"]) -> Int[np.ndarray, " g"]:
    """Rows prune more and more; that one can fit was checked (`search.check_target`)."""
    fits = search.flops(rows) <= search.settings.target * search.flops(search.channels[None])
    return rows[int(np.argmax(fits))]
