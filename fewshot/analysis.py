"""What the inner loop of a finished run does, measured on test episodes: python -m fewshot.main --mode=analyse ...

Per inner step: accuracy and loss of the query images when everything that the run adapts, the head alone or the
backbone alone is adapted; how much each block's features of the query images have changed (linear CKA against those
before adaptation); the gradient norm of every tensor; CxGrad's factors and context.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from common.experiment import TrainState
from common.metrics import ci95_normal
from fewshot import adaptation, maml, similarity
from fewshot.adaptation import InnerLoop, Task
from fewshot.train import EpisodeBatch, Recipe, each_task, evaluation_tasks

MOST_STEPS = 10  # of the curves, whatever the run trained with
SIMILARITIES = {"biased": similarity.linear_cka, "unbiased": similarity.linear_cka_unbiased}


def variants(recipe: Recipe, params: dict[str, Any]) -> dict[str, InnerLoop]:
    """The inner loops to compare: the run's own ("all"), "head" and "backbone", each long enough for the curves.

    Rates and norms that are learned per step exist for the run's own steps alone, so those runs are not prolonged; nor
    is there a variant that adapts tensors for which no rate was learned. The head alone is adapted by MAML's step:
    CxGrad's factors are those of convolutions.
    """
    per_step = recipe.learned_rates or recipe.network.norm_steps > 0
    steps = recipe.inner.num_steps if per_step else max(MOST_STEPS, recipe.inner.num_steps)
    own = dataclasses.replace(recipe.inner, num_steps=steps, first_order=True, remat=False)
    found = {"all": own}
    for part in ("head", "backbone"):
        method = "maml" if part == "head" else own.method
        theta, _ = maml.split_parameters(params["net"], part)
        if "rates" not in params or theta.keys() <= params["rates"].keys():
            found[part] = dataclasses.replace(own, adapted=part, method=method)
    return found


def run_episodes(
    recipe: Recipe, state: TrainState, data: dict[str, Any], batch: Int[Array, " b"] | EpisodeBatch
) -> dict[str, dict[str, Array]]:
    """`analyse_task` of fixed episodes, all with a leading axis b; `batch` as `train.evaluation_tasks` takes it."""
    tasks = evaluation_tasks(recipe, data, batch)
    return each_task(recipe, lambda params, task: analyse_task(recipe, params, task), state.params, tasks)


def analyse_task(recipe: Recipe, params: dict[str, Any], task: Task) -> dict[str, dict[str, Array]]:
    """For one task and S inner steps, {quantity: {name: values}}.

    "accuracy" and "loss" {variant: [S + 1]}, from before the first step; "biased" and "unbiased", the linear CKA
    {block or "logits": [S + 1]}; "gradient_norm" {tensor: [S]}; for CxGrad "factors" {"gamma": [S, L]} and "context"
    {"norm": [S + 1]}.
    """
    result: dict[str, dict[str, Array]] = {"accuracy": {}, "loss": {}}
    for name, spec in variants(recipe, params).items():
        theta, omega = maml.split_parameters(params["net"], spec.adapted)

        def query(theta: maml.Parameters, step, omega=omega, name=name):
            return _query(recipe, maml.join_parameters(theta, omega), task, step, keep_grams=name == "all")

        before = query(theta, 0)
        inputs = adaptation.inner_inputs(spec, task)
        adapted = adaptation.adapt(spec, recipe.network.apply, params, **inputs, after_step=query)
        curve = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), before, adapted.after_step)
        result["accuracy"][name], result["loss"][name] = curve["accuracy"], curve["loss"]
        if name == "all":
            result |= _changes(curve["grams"]) | _trace(adapted.trace)
    return result


def _query(recipe: Recipe, net: dict[str, Any], task: Task, step, keep_grams: bool) -> dict[str, Any]:
    """Accuracy, loss and, if wanted, Gram matrices of the features of the query images."""
    apply: Callable[..., Any] = recipe.network.apply
    variables, moments = {"params": net}, None
    if recipe.inner.batch_norm == "support_stats":
        moments = apply(variables, task.support_images, step).moments
    output, kept = apply(variables, task.query_images, step, moments, mutable=["intermediates"])
    found: dict[str, Any] = {
        "accuracy": jnp.mean(jnp.argmax(output.logits, axis=-1) == task.query_labels),
        "loss": maml.cross_entropy(output.logits, task.query_labels),
    }
    if keep_grams:
        maps = {name.removesuffix("_output"): leaf for name, (leaf,) in kept["intermediates"].items()}
        found["grams"] = {name: similarity.gram(leaf) for name, leaf in (maps | {"logits": output.logits}).items()}
    return found


def _changes(grams: dict[str, Float[Array, "steps n n"]]) -> dict[str, dict[str, Float[Array, " steps"]]]:
    return {
        form: {name: jax.vmap(cka, in_axes=(None, 0))(gram[0], gram) for name, gram in grams.items()}
        for form, cka in SIMILARITIES.items()
    }


def _trace(trace: dict[str, Any]) -> dict[str, dict[str, Array]]:
    found = {"gradient_norm": trace["gradient_norm"]}
    if "factors" in trace:
        found["factors"] = {"gamma": trace["factors"]}
        found["context"] = {"norm": jnp.linalg.norm(trace["context"], axis=-1)}
    return found


def summarize(values: dict[str, dict[str, Float[np.ndarray, "E ..."]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """{quantity: {name: {"mean": ..., "ci95": ...}}} over E episodes as JSON can hold it; None where undefined, as a
    similarity of features that are the same for all images."""

    def one(array: np.ndarray) -> dict[str, Any]:
        array = array.astype(np.float64)
        half_widths = np.apply_along_axis(ci95_normal, 0, array)
        return {"mean": _listed(array.mean(axis=0)), "ci95": _listed(half_widths)}

    return {quantity: {name: one(array) for name, array in group.items()} for quantity, group in values.items()}


def _listed(values: np.ndarray | np.floating) -> Any:
    if values.ndim == 0:
        return float(values) if np.isfinite(values) else None
    return [_listed(row) for row in np.asarray(values)]
