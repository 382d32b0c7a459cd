"""`--mode=analyse` of a finished run: how rough the loss is around the whole network and around the slim one.

`landscape` says what is inferred about this measure. On a CPU it takes minutes: every Lanczos iteration is a pass
forwards and backwards, twice differentiated, inside a compiled loop.
"""

import json
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Float
from ml_collections import ConfigDict

from common import rng, workdir, writers
from common.config import check_positive
from common.errors import UserError
from common.phases import Finished
from pruning import deploy, landscape, setup, splits
from pruning.graph import Graph
from pruning.models.network import Network
from pruning.objective import cross_entropy_sum

_POINTS = 9  # along each side of a surface
_REACH = 0.5  # filter lengths to each side


def analyse(config: ConfigDict, folder: Path) -> None:
    """Write `analysis.json` and figures of the loss surfaces. Raises UserError without a finished run."""
    check_positive(config, "landscape_images", "landscape_iterations")
    workdir.check_config(folder, config)
    if not workdir.is_done(folder):
        raise UserError(f"The run in {folder} is not finished; finish it first, with --mode=train.")
    setting = setup.load(config)
    names = [] if config.dense else ["dense"]
    dense = setup.dense_variables(config, setting.graph, Finished(folder, names))
    graph, params, stats, _ = deploy.load(folder / "slim")
    data = _images(setting, config)
    found = {}
    for name, one, variables in (
        ("dense", setting.graph, dense),
        ("slim", graph, {"params": params, "batch_stats": stats}),
    ):
        found |= {f"{name}_{key}": value for key, value in _measure(config, one, variables, data, name, folder).items()}
    (folder / "analysis.json").write_text(json.dumps(found, indent=1) + "\n")
    writers.table(f"Analysis of {folder}", ["result", "value"], sorted(found.items()))


def _images(setting: setup.Setting, config: ConfigDict) -> dict[str, Any]:
    """The first training images of each class, normalised, and their labels."""
    train = setting.dataset.splits["train"]
    per_class = -(-config.landscape_images // train.num_classes)
    places = splits.preparation_images(train.labels, train.num_classes, per_class)[: config.landscape_images]
    return {"images": setting.normalise(train.images[places]), "labels": train.labels[places]}


def _measure(
    config: ConfigDict, graph: Graph, variables: Any, data: dict[str, Any], name: str, folder: Path
) -> dict[str, float]:
    def loss(params: Any, data: dict[str, Any]) -> Float[Any, ""]:
        everything = {"params": params, "batch_stats": data["batch_stats"]}
        logits: Any = Network(graph).apply(everything, data["images"])
        return cross_entropy_sum(logits, data["labels"]) / len(data["labels"])

    data = data | {"batch_stats": variables["batch_stats"]}
    keys = [rng.stream(config.seed, f"landscape {part}") for part in ("start", "surface")]

    ends = landscape.hessian_extremes(loss, variables["params"], data, keys[0], config.landscape_iterations)
    side, losses = landscape.surface(loss, variables["params"], data, keys[1], _POINTS, _REACH)
    landscape.draw_surface(side, losses, folder / "figures" / f"surface_{name}.png", name)
    return {
        "loss": float(jax.jit(loss)(variables["params"], data)),
        "smallest_eigenvalue": float(ends.smallest),
        "largest_eigenvalue": float(ends.largest),
        "condition_number": float(landscape.condition_number(ends)),
    }
