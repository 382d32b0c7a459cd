"""A slim network on disk, without the network that it was cut from, and as one file that needs no code of ours.

save(folder, description, params, batch_stats)      slim.json and slim.safetensors
load(folder)                                        (graph, params, batch_stats, description)
export(folder, out)                                 pixels to logits as a program (`jax.export`)

python -m pruning.deploy --slim=RUN/slim --out=slim.npz
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict

from common import exported, tool
from common.augment import normalize
from common.errors import UserError, did_you_mean
from common.pretrained import Entry, match, read_weights, save_safetensors
from pruning import complexity
from pruning.graph import Graph, narrow
from pruning.models import ARCHITECTURES
from pruning.models.network import Network

DESCRIPTION, WEIGHTS = "slim.json", "slim.safetensors"
PyTree = Any


@dataclasses.dataclass(frozen=True)
class Description:
    """All that is needed to build the slim network again and to feed it.

    Attributes:
      architecture: of the whole network, a name of `ARCHITECTURES`.
      image_size: side in pixels.
      mean, std: of each channel, in units of [0, 1].
      kept: gate -> indices of the surviving channels in the whole network; the slim widths are their numbers.
    """

    architecture: str
    num_classes: int
    image_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    kept: dict[str, list[int]]

    def whole(self) -> Graph:
        """The graph of the network that the slim one was cut from."""
        if self.architecture not in ARCHITECTURES:
            near = did_you_mean(self.architecture, ARCHITECTURES)
            raise UserError(f"architecture is {self.architecture!r}{near}; known are {', '.join(ARCHITECTURES)}.")
        return ARCHITECTURES[self.architecture](self.num_classes, self.image_channels)

    def widths(self) -> dict[str, int]:
        """Channels of each gate."""
        return {gate: len(indices) for gate, indices in self.kept.items()}


def record(description: Description) -> dict[str, Any]:
    """What `slim.json` holds: the description, the widths, and FLOPs and parameters in both conventions."""
    whole, cost = description.whole(), {}
    for count in complexity.COUNTS:
        slim, full = (
            complexity.totals(whole, description.image_size, widths, count) for widths in (description.widths(), None)
        )
        cost[count] = {
            "flops": int(slim.flops),
            "params": int(slim.params),
            "flops_kept": float(slim.flops / full.flops),
            "params_kept": float(slim.params / full.params),
        }
    return {**dataclasses.asdict(description), "widths": description.widths(), "cost": cost}


def save(folder: Path, description: Description, params: PyTree, batch_stats: PyTree) -> None:
    """Write both files. Raises UserError if that is not possible."""
    arrays = flatten_dict({"params": params, "batch_stats": batch_stats}, sep="/")
    save_safetensors(folder / WEIGHTS, {name: np.asarray(array) for name, array in arrays.items()})
    try:
        partial = folder / (DESCRIPTION + ".partial")
        partial.write_text(json.dumps(record(description), indent=1) + "\n")
        partial.replace(folder / DESCRIPTION)
    except OSError as error:
        raise UserError(f"{folder / DESCRIPTION} cannot be written ({error.strerror}).") from error


def load(folder: Path) -> tuple[Graph, PyTree, PyTree, Description]:
    """(slim graph, params, batch_stats, description) of what `save` wrote; nothing else is read.

    Raises:
      UserError: missing or damaged files, or files that do not belong together.
    """
    description = _read(folder / DESCRIPTION)
    try:
        graph = narrow(description.whole(), description.widths())
    except UserError as error:
        raise UserError(f"{folder / DESCRIPTION} describes no network that is known here: {error}") from error
    network, side = Network(graph), description.image_size
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, side, side, graph.image_channels))))
    template = {name: dict(shapes[name]) for name in ("params", "batch_stats")}
    entries = [Entry(name, name) for name in flatten_dict(template, sep="/")]
    tree = match(read_weights(folder / WEIGHTS), entries, template, where=str(folder / WEIGHTS)).tree
    return graph, tree["params"], tree["batch_stats"], description


def _read(file: Path) -> Description:
    if not file.is_file():
        raise UserError(
            f"{file.parent} holds no slim network (there is no {file.name}); give RUN/slim of a finished run."
        )
    try:
        stored = json.loads(file.read_text())
        numbers: dict[str, Any] = {name: int(stored[name]) for name in ("num_classes", "image_channels", "image_size")}
        moments: dict[str, Any] = {name: tuple(float(value) for value in stored[name]) for name in ("mean", "std")}
        if min(numbers.values()) < 1 or {len(values) for values in moments.values()} != {numbers["image_channels"]}:
            raise ValueError("numbers below 1, or not one mean and std per channel")
        return Description(
            architecture=str(stored["architecture"]),
            class_names=tuple(str(name) for name in stored["class_names"]),
            kept={str(gate): [int(index) for index in indices] for gate, indices in stored["kept"].items()},
            **numbers,
            **moments,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({type(error).__name__}: {error}); copy it anew from the run.") from error


def export(folder: Path, out: Path) -> Description:
    """Write the slim network of `folder` as one program: uint8 pictures [n, side, side, c], any n, to (logits,)."""
    graph, params, batch_stats, description = load(folder)

    def program(variables, pictures):
        images = normalize(pictures, description.mean, description.std)
        return (Network(graph).apply(variables, images),)

    side = description.image_size
    pictures = exported.some((side, side, description.image_channels), jnp.uint8)
    variables = {"params": params, "batch_stats": batch_stats}
    exported.write(program, variables, [pictures], {"outputs": ["logits"], **record(description)}, out)
    return description


def define_flags() -> None:
    """The flags of this program; not at import, because programs share names."""
    flags.DEFINE_string("slim", "", "Folder of a slim network: `slim` in the work directory of a finished run.")
    flags.DEFINE_string("out", "", "File to write, ending in .npz.")


def main() -> None:
    values = flags.FLAGS
    if not values.slim or not values.out.endswith(".npz"):
        raise UserError("give --slim=RUN/slim and --out=FILE.npz.")
    description = export(Path(values.slim), tool.new_file(Path(values.out)))
    side, channels = description.image_size, description.image_channels
    print(
        f"{values.out}: uint8 pictures [n, {side}, {side}, {channels}] to logits of {description.num_classes} classes."
    )


if __name__ == "__main__":
    define_flags()
    tool.run(main)
