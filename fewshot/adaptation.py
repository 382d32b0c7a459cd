"""Adapting the meta-learned parameters to one task, by MAML or CxGrad, and the loss that the outer loop minimises."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fewshot import cxgrad, maml
from fewshot.models import Output


class Task(NamedTuple):
    """One N-way K-shot episode; labels are positions 0 .. N-1."""

    support_images: Float[Array, "NK h w c"]
    support_labels: Int[Array, " NK"]
    query_images: Float[Array, "NQ h w c"]
    query_labels: Int[Array, " NQ"]


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


class Adapted(NamedTuple):
    """θ_T and what happened on the way, stacked over the steps."""

    theta: maml.Parameters
    omega: maml.Parameters
    trace: dict[
        str, Any
    ]  # support_loss [T], gradient_norm {path: [T]}, moments; CxGrad: factors [T, L], context [T+1, P]
    after_step: Any  # stacked results of the caller's `after_step`


Apply = Callable[..., Any]  # apply({"params": ...}, images, step, moments) -> Output


def adapt(
    spec: InnerLoop,
    apply: Apply,
    params: dict[str, Any],
    images: Float[Array, "NK h w c"],
    labels: Int[Array, " NK"],
    after_step: Callable[[maml.Parameters, Any], Any] = lambda theta, step: None,
) -> Adapted:
    """Run the inner loop on a support set.

    `params`: "net" (the network's), optionally "rates" (learned inner rates, one vector per tensor) and "generator"
    (CxGrad). `after_step(θ_{t+1}, t)` is evaluated after every step, for losses and curves along the way.
    """
    theta, omega = maml.split_parameters(params["net"], spec.adapted)

    def support_loss(theta: maml.Parameters, step):
        output = apply({"params": maml.join_parameters(theta, omega)}, images, step)
        return maml.cross_entropy(output.logits, labels), output.moments

    def rates(step):
        if "rates" in params:
            return {path: params["rates"][path][step] for path in theta}
        return dict.fromkeys(theta, jnp.asarray(spec.learning_rate, images.dtype))

    factors = _scale_factors(spec, params, theta)
    context = jnp.zeros(spec.context_size if spec.method == "cxgrad" else 0, images.dtype)
    context_rate = spec.context_rate if spec.context == "learned" and spec.scaling == "learned" else 0.0
    if spec.method == "cxgrad" and context_rate:
        context = cxgrad.initial_context(lambda theta: support_loss(theta, 0), theta, factors, context, context_rate)

    def inner_step(carry, step):
        theta, context = carry

        def loss(theta):
            return support_loss(theta, step)

        if spec.method == "cxgrad":
            trace = {"factors": factors(context), "context": context}
            theta, context, (value, moments, gradient) = cxgrad.inner_step(
                loss, theta, context, factors, rates(step), context_rate, spec.first_order
            )
        else:
            trace = {}
            value, moments, gradient = maml.support_gradient(loss, theta, spec.first_order)
            theta = maml.descend(theta, gradient, rates(step))
        trace |= {"support_loss": value, "moments": moments}
        trace["gradient_norm"] = {path: jnp.linalg.norm(leaf.ravel()) for path, leaf in gradient.items()}
        return (theta, context), (trace, after_step(theta, step))

    if spec.remat:
        inner_step = jax.checkpoint(inner_step, static_argnums=() if spec.scan else (1,))
    (theta, context), (trace, after) = _run(inner_step, (theta, context), spec.num_steps, spec.scan)
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

    With `importance` (MAML++'s multi-step loss) it is Σ_t v_t L_query(θ_{t+1}); otherwise L_query(θ_T).
    """
    _, omega = maml.split_parameters(params["net"], spec.adapted)

    def query(theta: maml.Parameters, step):
        output = predict(spec, apply, theta, omega, task.query_images, task.support_images, step)
        return maml.cross_entropy(output.logits, task.query_labels), output.logits, output.moments

    support = (task.support_images, task.support_labels)
    if importance is None:
        adapted = adapt(spec, apply, params, *support)
        queries = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], query(adapted.theta, spec.num_steps - 1))
    else:
        adapted = adapt(spec, apply, params, *support, after_step=query)
        queries = adapted.after_step
    losses, logits, moments = queries
    loss = losses[0] if importance is None else jnp.sum(importance * losses)
    return loss, adapted.trace | {"logits": logits[-1], "query_loss": losses, "query_moments": moments}
