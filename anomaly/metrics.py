"""How well scores find anomalies, exactly: AUROC, average precision, best F1, area under the per-region overlap.

Everything is counted from two sorted arrays, the scores of normal and those of anomalous pixels (or images). The curves
bend only at the scores of anomalous pixels, which are few: so full-resolution test sets take seconds. Sources: Bergmann
et al. (MVTec AD) for AUPRO; Hanley and McNeil for AUROC as a rank statistic.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage

Side = Literal["left", "right"]
Masks = Bool[np.ndarray, "n H W"] | UInt8[np.ndarray, "n H W"]


class Ranking(NamedTuple):
    """Scores by class, each ascending, and what each anomalous one counts for."""

    normal: Float[np.ndarray, " normal"]
    anomalous: Float[np.ndarray, " anomalous"]
    weights: Float[np.ndarray, " anomalous"]  # in the mean over regions; they add up to 1

    def normal_from(self, thresholds: np.ndarray, side: Side = "left") -> np.ndarray:
        """How many normal scores are at least (side "right": above) each threshold."""
        return len(self.normal) - np.searchsorted(self.normal, thresholds, side)

    def anomalous_from(self, thresholds: np.ndarray, side: Side = "left") -> np.ndarray:
        """How many anomalous scores are at least (side "right": above) each threshold."""
        return len(self.anomalous) - np.searchsorted(self.anomalous, thresholds, side)

    def weight_from(self, thresholds: np.ndarray, side: Side = "left") -> np.ndarray:
        """PRO: mean over the regions of the share that is at least (above) each threshold."""
        from_end = np.concatenate([np.cumsum(self.weights[::-1])[::-1], [0.0]])
        return from_end[np.searchsorted(self.anomalous, thresholds, side)]


def rank_images(scores: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> Ranking:
    """Scores of images, label 0 = normal, 1 = anomalous."""
    anomalous = labels != 0
    return _rank(scores[~anomalous], scores[anomalous], np.full(anomalous.sum(), 1 / max(anomalous.sum(), 1)))


def rank_pixels(maps: Float[np.ndarray, "n H W"], masks: Masks) -> Ranking:
    """Scores of all pixels of a test set, normal images included; regions are labelled image by image."""
    anomalous = masks != 0
    regions, count = connected_regions(masks)
    inside = regions[anomalous]
    areas = np.bincount(inside, minlength=count + 1).astype(np.float64)
    return _rank(maps[~anomalous], maps[anomalous], 1 / (max(count, 1) * areas[inside]))


def _rank(normal: np.ndarray, anomalous: np.ndarray, weights: np.ndarray) -> Ranking:
    order = np.argsort(anomalous, kind="stable")
    return Ranking(np.sort(normal), anomalous[order], weights[order])


def connected_regions(masks: Masks) -> tuple[Int[np.ndarray, "n H W"], int]:
    """8-connected regions of each mask, numbered from 1 through all images (0 = outside), and their number."""
    labelled, count = np.zeros(masks.shape, np.int32), 0
    for index, mask in enumerate(masks):
        if mask.any():
            found, number = _label(mask)
            labelled[index] = np.where(found > 0, found + count, 0)
            count += number
    return labelled, count


def _label(mask: np.ndarray) -> tuple[np.ndarray, int]:
    result: Any = ndimage.label(mask, np.ones((3, 3)))
    return result


def is_defined(ranking: Ranking) -> bool:
    """Whether there is something normal and something anomalous; without both, no metric means anything."""
    return len(ranking.normal) > 0 and len(ranking.anomalous) > 0


def auroc(ranking: Ranking) -> float:
    """The probability that an anomalous score is above a normal one, ties counted half; NaN where undefined."""
    if not is_defined(ranking):
        return float("nan")
    below = np.searchsorted(ranking.normal, ranking.anomalous, "left")
    not_above = np.searchsorted(ranking.normal, ranking.anomalous, "right")
    pairs = 0.5 * (below.sum(dtype=np.float64) + not_above.sum(dtype=np.float64))
    return float(pairs / (len(ranking.normal) * len(ranking.anomalous)))


def average_precision(ranking: Ranking) -> float:
    """Σ (recall step) x precision over falling thresholds, equal scores together; NaN where undefined."""
    if not is_defined(ranking):
        return float("nan")
    thresholds, counts = np.unique(ranking.anomalous, return_counts=True)
    found = ranking.anomalous_from(thresholds)
    return float(np.sum(counts * (found / (found + ranking.normal_from(thresholds)))) / len(ranking.anomalous))


def f1_max(ranking: Ranking) -> tuple[float, float]:
    """The largest F1 over all thresholds (score >= threshold is anomalous), and the lowest threshold that has it.

    It is fitted to the labels, so it is a bound on what a threshold can do, not a result. NaN where undefined.
    """
    if not is_defined(ranking):
        return float("nan"), float("nan")
    thresholds = np.unique(ranking.anomalous)  # any other threshold only adds false alarms
    found = ranking.anomalous_from(thresholds)
    f1 = 2 * found / (found + ranking.normal_from(thresholds) + len(ranking.anomalous))
    best = int(np.argmax(f1))
    return float(f1[best]), float(thresholds[best])


class ProCurve(NamedTuple):
    """Per-region overlap against false positive rate, from (0, 0) on."""

    fpr: Float[np.ndarray, " points"]
    pro: Float[np.ndarray, " points"]


def pro_curve(ranking: Ranking) -> ProCurve:
    """The exact curve over all distinct scores, by its corners: just above and at each score of an anomalous pixel.

    FPR counts pixels outside of all regions over all images; between the corners the curve is straight.
    """
    thresholds = np.unique(ranking.anomalous)[::-1]
    sides: tuple[Side, Side] = ("right", "left")
    normal = [ranking.normal_from(thresholds, side) / max(len(ranking.normal), 1) for side in sides]
    weight = [ranking.weight_from(thresholds, side) for side in sides]
    fpr, pro = (np.stack(pair, axis=1).ravel() for pair in (normal, weight))
    return ProCurve(np.concatenate([[0.0], fpr, [1.0]]), np.concatenate([[0.0], pro, [1.0]]))


def aupro(ranking: Ranking, limit: float = 0.3) -> float:
    """Area under the PRO curve up to the false positive rate `limit`, divided by it (MVTec's definition).

    Trapezoids, with linear interpolation where the curve crosses the limit. NaN where undefined.
    """
    if not is_defined(ranking):
        return float("nan")
    fpr, pro = pro_curve(ranking)
    last = int(np.searchsorted(fpr, limit, "right"))  # the first point beyond the limit
    if last < len(fpr):
        share = (limit - fpr[last - 1]) / (fpr[last] - fpr[last - 1])
        end = pro[last - 1] + share * (pro[last] - pro[last - 1])
        fpr, pro = np.append(fpr[:last], limit), np.append(pro[:last], end)
    return float(np.trapezoid(pro, fpr) / limit)


def pro_reference(ranking: Ranking, limit: float = 0.3, steps: int = 200) -> float:
    """The official code's number, only to compare with published ones: never mix it with `aupro` in one table.

    `steps` equally spaced thresholds, prediction strictly above; the points with FPR up to the limit are kept and both
    axes of them rescaled to [0, 1], which makes every curve end at 1 and the value too large.
    """
    if not is_defined(ranking):
        return float("nan")
    low = np.float64(min(ranking.normal[0], ranking.anomalous[0]))
    high = np.float64(max(ranking.normal[-1], ranking.anomalous[-1]))
    thresholds = high - np.arange(steps) * ((high - low) / steps)
    fpr = ranking.normal_from(thresholds, "right") / len(ranking.normal)
    pro = ranking.weight_from(thresholds, "right")
    fpr, pro = fpr[fpr <= limit], pro[fpr <= limit]
    if fpr.max() == fpr.min() or pro.max() == pro.min():
        return float("nan")
    fpr, pro = ((axis - axis.min()) / (axis.max() - axis.min()) for axis in (fpr, pro))
    return float(np.trapezoid(pro, fpr))
