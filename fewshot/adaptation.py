"""Adapting the meta-learned parameters to one task, by MAML or CxGrad, on the support set or with pseudo-labelled query
images too (TAPL), and the loss that the outer loop minimises."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fewshot import cxgrad, maml, tapl
from fewshot.label_propagation import Propagation, propagate
from fewshot.length_scale import length_scale
from fewshot.models import Output
from fewshot.tapl import Tapl


class Task(NamedTuple):
    """One N-way K-shot episode; labels are positions 0 .. N-1."""

    support_images: Float[Array, "NK h w c"]
    support_labels: Int[Array, " NK"]
    query_images: Float[Array, "NQ h w c"]
    query_labels: Int[Array, " NQ"]


TRANSDUCTION = ("off", "tapl", "propagation")  # the last: no inner loop, query labels are propagated (TPN)


@dataclasses.dataclass(frozen=True)
class InnerLoop:
    """What is fixed before compilation: the method and how its steps are run."""

    method: str  # "maml" or "cxgrad"
    num_steps: int
    learning_rate: float  # α, where the rates are not learned
    adapted: str = "all"  # which parameters move, see maml.split_parameters
    first_order: bool = False
    context: str = "learned"  # CxGrad: "learned" or "off" (c stays 0, so γ is the same for all tasks)
    scaling: str = "learned"  # CxGrad: "learned" or "fixed_one" (γ = 1: weight normalisation alone)
    context_size: int = 100  # P
    context_rate: float = 1.0  # β
    batch_norm: str = "batch"  # moments of query batches: their own, or "support_stats" (inductive)
    scan: bool = True  # lax.scan over the steps, or unrolled
    remat: bool = False  # recompute each step's activations in the backward pass
    transduction: str = "off"  # one of TRANSDUCTION
    propagation: Propagation = dataclasses.field(default_factory=Propagation)
    tapl: Tapl = dataclasses.field(default_factory=Tapl)


class Adapted(NamedTuple):
    """θ_T and what happened on the way, stacked over the steps."""

    theta: maml.Parameters
    omega: maml.Parameters
    # support_loss [T], gradient_norm {path: [T]}, moments; CxGrad: factors [T, L], context [T+1, P];
    # TAPL: pseudo_loss [T], pseudo_labels and probabilities [T, NQ, N]
    trace: dict[str, Any]
    after_step: Any  # stacked results of the caller's `after_step`


Apply = Callable[..., Any]  # apply({"params": ...}, images, step, moments) -> Output


def adapt(
    spec: InnerLoop,
    apply: Apply,
    params: dict[str, Any],
    images: Float[Array, "NK h w c"],
    labels: Int[Array, " NK"],
    after_step: Callable[[maml.Parameters, Any], Any] = lambda theta, step: None,
    query_images: Float[Array, "NQ h w c"] | None = None,
) -> Adapted:
    """Run the inner loop on a support set; TAPL needs `query_images` too, which are in its batch behind the support's.

    `params`: "net" (the network's), optionally "rates" (learned inner rates, one vector per tensor), "generator"
    (CxGrad) and "sigma" (TAPL). `after_step(θ_{t+1}, t)` is evaluated after every step, for losses and curves.
    """
    theta, omega = maml.split_parameters(params["net"], spec.adapted)
    if query_images is not None:
        images = jnp.concatenate([images, query_images])

    def forward(theta: maml.Parameters, step):
        return apply({"params": maml.join_parameters(theta, omega)}, images, step)

    def rates(step):
        if "rates" in params:
            return {path: params["rates"][path][step] for path in theta}
        return dict.fromkeys(theta, jnp.asarray(spec.learning_rate, images.dtype))

    factors = _scale_factors(spec, params, theta)
    context = jnp.zeros(spec.context_size if spec.method == "cxgrad" else 0, images.dtype)
    sigma = {}
    if spec.transduction == "tapl":
        first = cxgrad.scale_weights(theta, factors(context)) if spec.method == "cxgrad" else theta
        learned = params.get("sigma", {})
        objective = tapl.objective(spec.tapl, spec.propagation, forward, labels, first, learned, spec.first_order)
        sigma = learned if spec.tapl.adapt_sigma else {}
    else:
        objective = maml.support_objective(forward, labels, spec.first_order)
    context_rate = spec.context_rate if spec.context == "learned" and spec.scaling == "learned" else 0.0
    if spec.method == "cxgrad" and context_rate:
        context = cxgrad.initial_context(lambda theta: objective.loss(theta, 0), theta, factors, context, context_rate)

    def inner_step(carry, step):
        theta, context, sigma = carry

        def gradient_of(theta):
            return objective.gradient(theta, sigma, step)

        if spec.method == "cxgrad":
            before = {"factors": factors(context), "context": context}
            theta, context, (trace, sigma_gradient, gradient) = cxgrad.inner_step(
                gradient_of, theta, context, factors, rates(step), context_rate, spec.first_order
            )
            trace = before | trace
        else:
            trace, sigma_gradient, gradient = gradient_of(theta)
            theta = maml.descend(theta, gradient, rates(step))
        sigma = {name: sigma[name] - spec.learning_rate * sigma_gradient[name] for name in sigma}
        trace["gradient_norm"] = {path: jnp.linalg.norm(leaf.ravel()) for path, leaf in gradient.items()}
        return (theta, context, sigma), (trace, after_step(theta, step))

    if spec.remat:
        inner_step = jax.checkpoint(inner_step, static_argnums=() if spec.scan else (1,))
    (theta, context, _), (trace, after) = _run(inner_step, (theta, context, sigma), spec.num_steps, spec.scan)
    if spec.method == "cxgrad":
        trace["context"] = jnp.concatenate([trace["context"], context[None]])
    return Adapted(theta, omega, trace, after)


def _scale_factors(spec: InnerLoop, params: dict[str, Any], theta: maml.Parameters) -> Callable[[Array], Array]:
    if spec.scaling == "fixed_one":
        num_layers = len(cxgrad.scaled_layers(theta))
        return lambda context: jnp.ones(num_layers, context.dtype)
    return lambda context: cxgrad.scale_factors(params["generator"], context)


def _run(step: Callable, carry: Any, num_steps: int, scan: bool) -> tuple[Any, Any]:
    """`lax.scan` over 0 .. num_steps-1, or the same unrolled: longer to compile, free of loop-body penalties."""
    if scan:
        return jax.lax.scan(step, carry, jnp.arange(num_steps))
    outputs = []
    for t in range(num_steps):
        carry, output = step(carry, t)
        outputs.append(output)
    return carry, jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *outputs)


def predict(
    spec: InnerLoop,
    apply: Apply,
    theta: maml.Parameters,
    omega: maml.Parameters,
    images: Float[Array, "n h w c"],
    support_images: Float[Array, "NK h w c"],
    step: Int[Array, ""] | int,
) -> Output:
    """Run the adapted network on query images. They are normalised together, as one batch (evaluation is transductive
    through batch norm), or by the support batch's moments if `spec.batch_norm` is "support_stats"."""
    variables = {"params": maml.join_parameters(theta, omega)}
    moments = apply(variables, support_images, step).moments if spec.batch_norm == "support_stats" else None
    return apply(variables, images, step, moments)


def task_loss(
    spec: InnerLoop, apply: Apply, params: dict[str, Any], task: Task, importance: Float[Array, " T"] | None = None
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """One task's share of the outer loss, and the trace with "logits", "query_loss" and "query_moments" added.

    With `importance` (MAML++'s multi-step loss) it is Σ_t v_t L_query(θ_{t+1}); otherwise L_query(θ_T). TAPL adds
    "pseudo_accuracy" and "confidence" [T] of its pseudo labels; only here are they compared with the true labels.
    """
    if spec.transduction == "propagation":
        return propagation_loss(spec, apply, params, task)
    _, omega = maml.split_parameters(params["net"], spec.adapted)

    def query(theta: maml.Parameters, step):
        output = predict(spec, apply, theta, omega, task.query_images, task.support_images, step)
        return maml.cross_entropy(output.logits, task.query_labels), output.logits, output.moments

    inputs = inner_inputs(spec, task)
    if importance is None:
        adapted = adapt(spec, apply, params, **inputs)
        queries = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], query(adapted.theta, spec.num_steps - 1))
    else:
        adapted = adapt(spec, apply, params, **inputs, after_step=query)
        queries = adapted.after_step
    losses, logits, moments = queries
    loss = losses[0] if importance is None else jnp.sum(importance * losses)
    trace = adapted.trace | {"logits": logits[-1], "query_loss": losses, "query_moments": moments}
    if spec.transduction == "tapl":
        right = jnp.argmax(trace["probabilities"], axis=-1) == task.query_labels[None]
        trace["pseudo_accuracy"] = jnp.mean(right, axis=-1)
        trace["confidence"] = jnp.mean(jnp.max(trace["probabilities"], axis=-1), axis=-1)
    return loss, trace


def inner_inputs(spec: InnerLoop, task: Task) -> dict[str, Any]:
    """What `adapt` may see of a task; query labels are never among it."""
    inputs = {"images": task.support_images, "labels": task.support_labels}
    return inputs | {"query_images": task.query_images} if spec.transduction == "tapl" else inputs


def propagation_loss(
    spec: InnerLoop, apply: Apply, params: dict[str, Any], task: Task
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """TPN: no inner loop; the propagated labels F are the logits, and the loss is taken over support and query."""
    images = jnp.concatenate([task.support_images, task.query_images])
    labels = jnp.concatenate([task.support_labels, task.query_labels])
    output = apply({"params": params["net"]}, images, 0)
    sigma = length_scale(spec.propagation, params.get("sigma", {}), output.features)
    num_classes = output.logits.shape[1]
    scores = propagate(spec.propagation, output.features, sigma, task.support_labels, num_classes)
    query = scores[len(task.support_labels) :]
    query_loss = maml.cross_entropy(query, task.query_labels)
    return maml.cross_entropy(scores, labels), {"logits": query, "query_loss": query_loss[None], "gradient_norm": {}}
