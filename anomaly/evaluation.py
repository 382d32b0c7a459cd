"""What a set of scored test images says: metrics where they are defined, thresholds, and the normalised score."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from anomaly import metrics
from common.errors import UserError

# Shown and compared; larger is better for all.
METRICS = (
    "image_auroc",
    "image_ap",
    "image_f1_max",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1_max",
    "aupro",
    "pro_reference",
)


def detection_metrics(
    maps: Float[np.ndarray, "n H W"],
    scores: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    masks: Bool[np.ndarray, "n H W"] | None,
    with_reference: bool,
) -> dict[str, float]:
    """Every metric that is defined on this set; without masks or without defects some are not, and are left out.

    `with_reference`: also the official code's own PRO, to compare with its numbers (never with `aupro`).
    """
    found, (image_reason, pixel_reason) = {}, _reasons(labels, masks)
    if not image_reason:
        images = metrics.rank_images(scores, labels)
        found["image_auroc"] = metrics.auroc(images)
        found["image_ap"] = metrics.average_precision(images)
        found["image_f1_max"] = metrics.f1_max(images)[0]
    if not pixel_reason and masks is not None:
        pixels = metrics.rank_pixels(maps, masks)
        found["pixel_auroc"] = metrics.auroc(pixels)
        found["pixel_ap"] = metrics.average_precision(pixels)
        found["pixel_f1_max"] = metrics.f1_max(pixels)[0]
        found["aupro"] = metrics.aupro(pixels)
        if with_reference:
            found["pro_reference"] = metrics.pro_reference(pixels)
    return found


def why_undefined(labels: Int[np.ndarray, " n"], masks: Bool[np.ndarray, "n H W"] | None, with_reference: bool) -> str:
    """Which metrics `detection_metrics` leaves out for such test images, and why; "" for none."""
    names = METRICS if with_reference else METRICS[:-1]
    groups = [name for name in names if name.startswith("image")], [name for name in names if "image" not in name]
    parts = [
        f"{', '.join(group[:-1])} and {group[-1]} are undefined and left out ({reason})"
        for group, reason in zip(groups, _reasons(labels, masks), strict=True)
        if reason
    ]
    return "; ".join(parts)


def _reasons(labels: Int[np.ndarray, " n"], masks: Bool[np.ndarray, "n H W"] | None) -> tuple[str, str]:
    """Why there are no metrics of images, and none of pixels; "" where there are."""
    if not len(labels):
        return "there are no test images", "there are no test images"
    image = "no test image is defective" if not np.any(labels) else "no test image is good" if np.all(labels) else ""
    if masks is None:
        return image, "there are no masks"
    return image, "no mask marks a defect" if not np.any(masks) else "the masks mark every pixel" * bool(np.all(masks))


class Calibration(NamedTuple):
    """What turns scores into decisions: range of the maps' values, thresholds, and what they were fitted to."""

    low: float
    high: float
    image_threshold: float
    pixel_threshold: float
    fitted_to: str

    def normalised(self, scores: np.ndarray | np.floating, threshold: float) -> np.ndarray | np.floating:
        """0.5 at the threshold, clipped to 0..1: comparable between images and between runs."""
        return np.clip((scores - threshold) / max(self.high - self.low, 1e-12) + 0.5, 0, 1)

    def shifted(self, sensitivity: float) -> "Calibration":
        """Thresholds for a sensitivity in 0..1: 0.5 keeps them, 1 lowers them by half the range."""
        shift = (sensitivity - 0.5) * (self.high - self.low)
        return self._replace(image_threshold=self.image_threshold - shift, pixel_threshold=self.pixel_threshold - shift)


def calibrate(
    maps: Float[np.ndarray, "n H W"],
    scores: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    masks: Bool[np.ndarray, "n H W"] | None,
    rule: str,
    quantile: float,
    of: str,
) -> Calibration:
    """Thresholds from a scored set that is called `of` in the record.

    `rule`: "f1" takes the best F1 on the labels of the set, and where it has no defects (or no masks, for pixels) the
    largest normal score; "normal_max" and "normal_quantile" look at normal images only.
    """
    images = metrics.rank_images(scores, labels)
    normal_maps = maps[labels == 0] if np.any(labels == 0) else maps
    normal_scores = images.normal if len(images.normal) else np.sort(scores)
    share = quantile if rule == "normal_quantile" else 1.0
    thresholds = {
        "image": float(np.quantile(normal_scores, share)),
        "pixel": float(np.quantile(normal_maps, share)),
    }
    fitted = f"{'largest' if share == 1 else f'{share:g} quantile of the'} normal score of {of}"
    if rule == "f1" and metrics.is_defined(images):
        thresholds["image"] = metrics.f1_max(images)[1]
        fitted = f"best F1 on {of}"
        pixels = metrics.rank_pixels(maps, masks) if masks is not None else None
        if pixels is not None and metrics.is_defined(pixels):
            thresholds["pixel"] = metrics.f1_max(pixels)[1]
    return Calibration(float(maps.min()), float(maps.max()), thresholds["image"], thresholds["pixel"], fitted)


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """calibration.json in the work directory."""
    (folder / "calibration.json").write_text(json.dumps(calibration._asdict(), indent=2) + "\n")


def read_calibration(folder: Path) -> Calibration:
    """Raises UserError where the run has not ended yet, or the file is damaged."""
    file = folder / "calibration.json"
    try:
        return Calibration(**json.loads(file.read_text()))
    except FileNotFoundError as error:
        raise UserError(
            f"{file} does not exist: the run in {folder} has not ended; finish it with its own command first."
        ) from error
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file} is damaged ({error}); run the run's own command with --mode=eval to renew it."
        ) from error
