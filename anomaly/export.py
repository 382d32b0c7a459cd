"""The whole scoring function in one file: python -m anomaly.export --workdir=RUN --height=900 --width=900 --out=cfa.npz

Takes RGB pictures as uint8 [n, height, width, 3], any n; does resize, crop, backbone, descriptor, distances, smoothing
and threshold. The file holds the program (StableHLO, by `jax.export`), the weights, and what belongs to them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Bool, Float

from anomaly import inference, pillow_resize
from anomaly.hypersphere import LARGEST_BLOCK
from common import exported, tool
from common.errors import UserError


class Scored(NamedTuple):
    """What the exported function returns, as a plain tuple in this order."""

    maps: Float[Array, "n h w"]  # smoothed anomaly maps of the crop
    scores: Float[Array, " n"]
    normalised: Float[Array, " n"]  # 0.5 at the threshold, clipped to 0..1
    defective: Bool[Array, " n"]


def score_pictures(model: inference.Model, variables: Any, thresholds: Float[Array, "3"], pictures: Array) -> Scored:
    """From pixels to decision. `thresholds`: low, high and image threshold of the calibration."""
    images = pillow_resize.apply_frame(model.frame, pictures)
    scores = inference.score_variables(model.recipe, variables, images)
    low, high, threshold = thresholds
    normalised = jnp.clip((scores.images - threshold) / jnp.maximum(high - low, 1e-12) + 0.5, 0, 1)
    return Scored(scores.maps, scores.images, normalised, scores.images >= threshold)


def write(model: inference.Model, height: int, width: int, out: Path) -> None:
    """Export for pictures of one size. Raises UserError where the crop does not fit or the file cannot be written."""
    resized = model.frame.resized(height, width)
    if min(height, width) < 1 or any(a < b for a, b in zip(resized, model.frame.crop, strict=True)):
        raise UserError(f"--height={height} --width={width} is smaller than the run's crop of {model.frame.crop}.")
    calibration = model.calibration
    thresholds = np.array([calibration.low, calibration.high, calibration.image_threshold], np.float32)
    # The number of pictures is unknown here, so the chunk that suits it cannot be chosen: one that suits 16.
    chunk = model.recipe.chunk or max(1, LARGEST_BLOCK // (16 * model.recipe.bank_rows))
    model = model._replace(recipe=model.recipe._replace(chunk=chunk))
    pictures = exported.some((height, width, 3), jnp.uint8)
    record = {"outputs": Scored._fields, "height": height, "width": width, "calibration": calibration._asdict()}

    def program(arrays, pictures):
        return tuple(score_pictures(model, arrays["variables"], arrays["thresholds"], pictures))

    exported.write(program, {"variables": model.variables, "thresholds": thresholds}, [pictures], record, out)


def load(file: Path) -> tuple[Callable[[Any], Scored], dict[str, Any]]:
    """(function of uint8 pictures, record) of an exported file; needs jax and numpy only.

    Raises:
      UserError: a file that is missing, damaged, or no export.
    """
    call, record = exported.load(file)
    return lambda pictures: Scored(*call(pictures)), record


def define_flags() -> None:
    """The flags of this program; not at import, because programs share names."""
    flags.DEFINE_string("workdir", "", "Work directory of a finished run.")
    flags.DEFINE_string("out", "", "File to write, ending in .npz.")
    flags.DEFINE_integer("height", 0, "Of the pictures that will be scored; 0: the network's input.")
    flags.DEFINE_integer("width", 0, "Of the pictures that will be scored; 0: the network's input.")


def main() -> None:
    values = flags.FLAGS
    if not values.workdir or not values.out.endswith(".npz"):
        raise UserError("give --workdir=RUN and --out=FILE.npz; --height and --width are those of your pictures.")
    model = inference.load_model(Path(values.workdir))
    height, width = values.height or model.frame.crop[0], values.width or model.frame.crop[1]
    write(model, height, width, tool.new_file(Path(values.out)))
    print(f"{values.out}: scores pictures of {height} x {width} pixels (height x width).")


if __name__ == "__main__":
    define_flags()
    tool.run(main)
