"""Figures of a run: the plan between two people, features before and after training, predictions against labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from ml_collections import ConfigDict

from common import plots
from common.data.faces import CATEGORIES, FaceData, Faces
from fer import grouping, matching, metrics, train

Outputs = Mapping[str, Mapping[str, np.ndarray]]
_FRAMES = 8  # of each person in the figure of the plan
_PEOPLE, _POINTS = 10, 500  # in the figure of features


def draw_all(
    config: ConfigDict,
    folder: Path,
    recipe: train.Recipe,
    state: Any,
    data: FaceData,
    held_out: Mapping[str, Faces],
    before: Outputs,
    after: Outputs,
) -> None:
    """plan, features and (for valence and arousal) scatter and residuals, as PNG and SVG."""
    note = f"{data.name}, synthetic faces" if data.synthetic else data.name
    test = held_out["test"]
    draw_plan(folder / "plan.png", recipe, state, test, note)
    latents = {"before training": before["test"]["latents"], "after training": after["test"]["latents"]}
    draw_features(folder / "features.png", latents, test, config, note)
    if config.task == "valence_arousal":
        scores = {name: after[name]["scores"] for name in ("seen", "test") if name in after}
        draw_scatter(folder / "scatter.png", scores, held_out, note)
        draw_residuals(folder / "residuals.png", scores, held_out, note)


def draw_plan(path: Path, recipe: train.Recipe, state: Any, split: Faces, note: str) -> None:
    """Heat map of the transport plan between frames of two people, with their faces on the axes."""
    people = [int(code) for code in np.unique(split.identity) if np.sum(split.identity == code) >= 2][:2]
    if len(people) < 2:
        return
    rows, columns = (_spread(split, code) for code in people)
    places = np.concatenate([rows, columns])
    found = plan_between(recipe, state, split.images[rows], split.images[columns])
    with mpl.rc_context(plots.STYLE):
        fig, axes = plots.figure(5.6, 5.2)
        axes.remove()
        grid = fig.add_gridspec(len(rows) + 1, len(columns) + 1, wspace=0.05, hspace=0.05)
        for i, place in enumerate(places):
            spot = grid[i + 1, 0] if i < len(rows) else grid[0, i - len(rows) + 1]
            _face(fig.add_subplot(spot), split.images[place])
        heat = fig.add_subplot(grid[1:, 1:])
        shown = heat.imshow(found, cmap="viridis", aspect="auto")
        heat.set_xlabel(f"target {split.identity_names[people[1]]}")
        heat.set_ylabel(f"reference {split.identity_names[people[0]]}")
        heat.set_xticks([])
        heat.set_yticks([])
        heat.grid(False)
        fig.colorbar(shown, ax=heat, label="transported mass")
        fig.suptitle(f"Transport plan ({note})")
    plots.save(fig, path)


def plan_between(
    recipe: train.Recipe, state: Any, reference: np.ndarray, target: np.ndarray
) -> Float[np.ndarray, "n m"]:
    """The plan between two people's frames (uint8 [n, H, W, 3] and [m, H, W, 3])."""

    @jax.jit
    def plan(state: Any, images: Array, identity: Array) -> Array:
        latents = train.predict(recipe, state.params, state.model_state, images)["latents"]
        return matching.match(latents, grouping.make_groups(identity, jnp.arange(2)), recipe.matching).plan

    identity = np.repeat([0, 1], [len(reference), len(target)])
    return np.asarray(plan(state, np.concatenate([reference, target]), identity))[: len(reference), len(reference) :]


def _spread(split: Faces, code: int) -> np.ndarray:
    """Up to eight frames of a person, from the saddest to the happiest."""
    places = np.flatnonzero(split.identity == code)
    order = places[np.argsort(split.valence_arousal[places, 0], kind="stable")]
    return order[np.unique(np.linspace(0, len(order) - 1, min(_FRAMES, len(order))).astype(int))]


def _face(ax: Axes, image: np.ndarray) -> None:
    ax.imshow(image)
    ax.axis("off")


def project(latents: Float[np.ndarray, "n d"], kind: str) -> Float[np.ndarray, "n 2"]:
    """Two coordinates of each row: principal components, or t-SNE started from them."""
    latents = np.asarray(latents, np.float64)
    if kind == "tsne" and len(latents) > 3:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(latents) - 1) / 3)
        # The exact form: the approximate one's threads wait for each other for minutes on a busy machine.
        return TSNE(2, perplexity=perplexity, init="pca", random_state=0, method="exact").fit_transform(latents)
    centred = latents - latents.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    return centred @ axes[:2].T


def draw_features(path: Path, latents: Mapping[str, np.ndarray], split: Faces, config: ConfigDict, note: str) -> None:
    """Features of people never trained on, by person and by valence (or category), before and after training."""
    people = np.unique(split.identity)[:_PEOPLE]
    chosen = np.flatnonzero(np.isin(split.identity, people))
    chosen = chosen[:: -(-len(chosen) // _POINTS)]
    with mpl.rc_context(plots.STYLE):
        fig, axes = plots.figure(8.4, 7.2)
        axes.remove()
        panels = fig.subplots(2, 2, squeeze=False)
        for row, (name, values) in zip(panels, latents.items(), strict=True):
            points = project(values[chosen], config.projection)
            by = np.searchsorted(people, split.identity[chosen])
            row[0].scatter(*points.T, c=by, cmap="tab10", vmin=-0.5, vmax=9.5, s=9)
            row[0].set_title(f"{name}, by person")
            if config.task == "category":
                kind = np.array(CATEGORIES)[split.category[chosen]]
                for category in np.unique(kind):
                    row[1].scatter(*points[kind == category].T, s=9, label=category)
                row[1].legend(fontsize="small")
            else:
                colors = split.valence_arousal[chosen, 0]
                shown = row[1].scatter(*points.T, c=colors, cmap="coolwarm", vmin=-1, vmax=1, s=9)
                fig.colorbar(shown, ax=row[1], label="valence")
            row[1].set_title(f"{name}, by {'category' if config.task == 'category' else 'valence'}")
            for ax in row:
                ax.set_xlabel(f"{config.projection} 1")
                ax.set_ylabel(f"{config.projection} 2")
        fig.suptitle(f"Features of {len(people)} people never trained on ({note})")
    plots.save(fig, path)


def draw_scatter(path: Path, predictions: Mapping[str, np.ndarray], held_out: Mapping[str, Faces], note: str) -> None:
    """Prediction against label, for people seen and not seen in training."""
    titles = {"seen": "other frames of training people", "test": "people never trained on"}
    with mpl.rc_context(plots.STYLE):
        fig, axes = plots.figure(8.0, 3.9 * len(predictions))
        axes.remove()
        panels = fig.subplots(len(predictions), 2, squeeze=False)
        for row, (name, scores) in zip(panels, predictions.items(), strict=True):
            labels = held_out[name].valence_arousal
            agreement = metrics.standard(scores, labels, undefined=0.0)["ccc"]
            for i, ax in enumerate(row):
                ax.plot([-1, 1], [-1, 1], color="0.6", linewidth=1)
                ax.scatter(labels[:, i], scores[:, i], s=5, alpha=0.5)
                ax.set_xlabel(f"labelled {metrics.OUTPUTS[i]}")
                ax.set_ylabel(f"predicted {metrics.OUTPUTS[i]}")
                ax.set_title(f"{titles[name]}: CCC {agreement[i]:.3f}")
        fig.suptitle(note)
    plots.save(fig, path)


def draw_residuals(path: Path, predictions: Mapping[str, np.ndarray], held_out: Mapping[str, Faces], note: str) -> None:
    """Mean residual of each person: who is over- and who is underestimated."""
    fig, ax = plots.figure(5.2, 5.0)
    with mpl.rc_context(plots.STYLE):
        for name, scores in predictions.items():
            split = held_out[name]
            means = metrics.identity_residuals(scores, split.valence_arousal, split.identity)
            ax.scatter(*means.T, s=16, label=name)
        ax.axhline(0, color="0.6", linewidth=1)
        ax.axvline(0, color="0.6", linewidth=1)
        ax.set_xlabel("mean residual of valence")
        ax.set_ylabel("mean residual of arousal")
        ax.set_title(f"One point a person ({note})")
        ax.legend()
    plots.save(fig, path)
