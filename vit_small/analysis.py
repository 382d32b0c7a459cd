"""`--mode=analyse` on a finished run: learned temperatures, diagonal and entropy of attention, what is looked at.

Writes figures/temperatures, attention, maps (PNG and SVG) and analysis.json.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Float
from ml_collections import ConfigDict

from common import parallel, plots, workdir
from common.augment import normalize
from common.checkpoint import read_run
from common.config import check_positive
from common.data import classification
from vit_small import diagnostics, experiment, train
from vit_small.check import check_config

Layers = list[Float[np.ndarray, "B h N M"]]


def analyse(config: ConfigDict, folder: Path) -> None:
    """Look at the last checkpoint of a run with the first `eval_analysed_images` test images of different classes."""
    workdir.check_config(folder, config)
    check_positive(config, "eval_analysed_images")
    dataset = classification.load_dataset(config)
    check_config(config, dataset.num_classes, len(dataset.splits["train"].labels))
    params = read_run(folder)[1]["params"]
    recipe = experiment.make_recipe(config, dataset.num_classes, *classification.moments(config, dataset))
    test = dataset.splits["test"]
    chosen = _spread(test.labels, config.eval_analysed_images)
    images = test.images[chosen]
    model = recipe.model.clone(design=dataclasses.replace(recipe.model.design, taps=True))
    spec = recipe.augmentation
    normal = normalize(jnp.asarray(images), spec.mean, spec.std)
    out = jax.jit(functools.partial(train.apply, model))(params, normal)
    layers = [np.asarray(block["attention"], np.float64) for block in out["blocks"]]

    scales = scales_by_layer(params)
    masked = model.design.mask_diagonal
    values = summary(layers, scales, masked)
    if parallel.is_main():
        workdir.write_results(folder, "analysis", values)
        figures = folder / "figures"
        if scales:
            draw_temperatures(scales, head_width(model), figures / "temperatures.png")
        draw_attention(values, len(layers), figures / "attention.png")
        draw_maps(images, maps(model, layers, config.image_size), figures / "maps.png")
        print(f"Analysis of {len(images)} images with the last checkpoint of {folder}, written to analysis.json:")
        for name, value in values.items():
            print(f"  {name} {value:.4g}")


def _spread(labels: np.ndarray, count: int) -> np.ndarray:
    """Places of `count` images, spread over the classes."""
    order = np.argsort(labels, kind="stable")
    return order[np.linspace(0, len(order) - 1, min(count, len(order))).astype(int)]


def scales_by_layer(params: Any) -> list[Float[np.ndarray, " t"]]:
    """Learned s of each layer in order, [] where none is learned. Swin's even and odd blocks are interleaved."""
    found: list[tuple[str, np.ndarray]] = []
    for path, leaf in flatten_dict(params, sep="/").items():
        if path.endswith("inverse_temperature"):
            # patch_blocks before class_blocks, tokens before blocks, a stage's last block behind its pairs.
            order = path.replace("class_blocks", "~").replace("tokens", "!").replace("_last", "/~")
            array = np.asarray(leaf, np.float64)
            if array.ndim == 1:
                found.append((f"{order}", array))
            for i, row in enumerate(array if array.ndim == 2 else ()):
                parity = order.replace("/even/", f"/{i:03d}a/").replace("/odd/", f"/{i:03d}b/")
                found.append((parity if parity != order else f"{order}/{i:03d}", row))
    return [row for _, row in sorted(found, key=lambda pair: pair[0])]


def head_width(model: Any) -> int:
    """d, the width of one head."""
    return getattr(model, "head_dim", 0) or model.width // np.ravel(model.heads)[0]


def summary(layers: Layers, scales: list[Float[np.ndarray, " t"]], masked: bool) -> dict[str, float]:
    """Numbers of each layer, under names that sort by layer."""
    values = {}
    for i, attention in enumerate(layers):
        square = attention.shape[-2] == attention.shape[-1]
        tokens = attention.shape[-1]
        values[f"layer{i + 1:02d}_entropy"] = diagnostics.entropy(attention)
        values[f"layer{i + 1:02d}_kl_to_uniform_all_tokens"] = diagnostics.kl_to_uniform(attention, tokens)
        allowed = tokens - (masked and square)
        values[f"layer{i + 1:02d}_kl_to_uniform_over_allowed"] = diagnostics.kl_to_uniform(attention, allowed)
        if square:
            values[f"layer{i + 1:02d}_diagonal"] = diagnostics.diagonal(attention)
    for i, row in enumerate(scales):
        for name, function in (("mean", np.mean), ("min", np.min), ("max", np.max)):
            values[f"temperature{i + 1:02d}_{name}"] = float(function(1.0 / row))
    return values


def maps(model: Any, layers: Layers, side: int) -> dict[str, Float[np.ndarray, "B rows columns"]]:
    """What the class token looks at in the last layer and over all layers; for Swin, which tokens are looked at."""
    name = type(model).__name__
    if name == "Swin":
        found, first = {}, 0
        for stage, depth in enumerate(model.depths):
            grid = (side // model.patch // 2**stage,) * 2
            found[f"received, stage {stage + 1}"] = diagnostics.received(layers[first], grid, 0)
            first += depth
        return found
    grid = -(-side // 2**model.soft_splits) if name == "T2T" else side // model.patch
    if name == "CaiT":
        patches = diagnostics.rollout(layers[: model.depth])
        looked = layers[-1].mean(axis=1)
        over_all = (looked @ patches)[:, 0].reshape(-1, grid, grid)
    elif name == "PiT":
        over_all, last = _rollout_of_stages(model.depths, layers, grid), grid // 2 ** (len(model.depths) - 1)
        return {
            "class token, last layer": diagnostics.class_token_map(layers[-1], (last, last)),
            "roll-out": over_all,
        }
    else:
        over_all = diagnostics.rollout(layers)[:, 0, 1:].reshape(-1, grid, grid)
    return {
        "class token, last layer": diagnostics.class_token_map(layers[-1], (grid, grid)),
        "roll-out": over_all,
    }


def _rollout_of_stages(depths: tuple[int, ...], layers: Layers, grid: int) -> Float[np.ndarray, "B rows columns"]:
    """Roll-outs of the stages, joined by poolings that spread evenly."""
    first, side = depths[0], grid
    result = diagnostics.rollout(layers[:first])
    for depth in depths[1:]:
        pooled = diagnostics.pooling_matrix((side, side)) @ result
        result = diagnostics.rollout(layers[first : first + depth]) @ pooled
        first, side = first + depth, side // 2
    return result[:, 0, 1:].reshape(-1, grid, grid)


# --- figures --------------------------------------------------------------------------------------------------------


def draw_temperatures(scales: list[Float[np.ndarray, " t"]], width: int, path: Path) -> None:
    """Temperature of each layer, mean and range over heads, with sqrt(d) for reference."""
    figure, axes = plots.figure()
    x = np.arange(1, len(scales) + 1)
    rows = [1.0 / row for row in scales]
    series = {name: np.array([function(row) for row in rows]) for name, function in _STATISTICS.items()}
    series["sqrt(d)"] = np.full(len(x), width**0.5)
    plots.lines(axes, x, series, "layer", "learned temperature", marker=".")
    plots.save(figure, path)


_STATISTICS = {"mean over heads": np.mean, "smallest": np.min, "largest": np.max}


def draw_attention(values: dict[str, float], depth: int, path: Path) -> None:
    """Entropy, divergence and diagonal by layer; a gap where attention is not square."""
    figure, axes = plots.figure()
    names = ("entropy", "kl_to_uniform_over_allowed", "diagonal")
    series = {
        name.replace("_", " "): np.array([values.get(f"layer{i + 1:02d}_{name}", np.nan) for i in range(depth)])
        for name in names
    }
    plots.lines(axes, np.arange(1, depth + 1), series, "layer", "nats, or probability", marker=".")
    plots.save(figure, path)


def draw_maps(images: np.ndarray, found: dict[str, Float[np.ndarray, "B rows columns"]], path: Path) -> None:
    """Images in the first row, each map over them below, brighter where more is looked at."""
    from PIL import Image

    count, side = min(8, len(images)), images.shape[1]
    rows = [[np.repeat(image, 3 // image.shape[-1], axis=-1) / 255.0 for image in images[:count]]]
    for planes in found.values():
        row = []
        for image, plane in zip(rows[0], planes, strict=False):
            bright = (plane / plane.max()).astype(np.float32)
            scaled = np.asarray(Image.fromarray(bright).resize((side, side), Image.Resampling.BILINEAR))
            row.append(image * (0.15 + 0.85 * scaled[..., None]))
        rows.append(row)
    figure, axes = plots.figure(1.1 * count, 1.2 * len(rows))
    axes.imshow(np.concatenate([np.concatenate(row, axis=1) for row in rows]), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([side * (i + 0.5) for i in range(len(rows))], ["image", *found])
    axes.grid(visible=False)
    plots.save(figure, path)
