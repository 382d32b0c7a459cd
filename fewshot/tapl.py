"""TAPL: transductive adaptation by pseudo labels, task by task (Lee, Lee, Song, arXiv 2304.11173).

The query images of a task are given labels by propagation from the support images, and both drive the inner loop; the
labels are made anew from the adapted features at every step, which fits them to the task. The procedure is a completion
of ours: only the paper's abstract was readable, and there is no official code (see README.md).

    ŷ_t = soft labels of the queries, propagated from the features of θ_t
    ℓ_t(θ; ŷ) = CE(support) + λ mean over queries of -Σ_c ŷ_c log softmax(o)_c
    θ_{t+1} = θ_t - α ∇_θ ℓ_t(θ_t; ŷ_t)       ŷ is an argument: constant for this gradient

Support and query images are one batch for batch norm. The outer gradient may also flow through ŷ ("soft_outer"), or
not ("soft_constant"; "hard": the likeliest class). True query labels are no argument of anything here.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fewshot import maml
from fewshot.label_propagation import Propagation, hard_labels, propagate, soft_labels
from fewshot.length_scale import length_scale
from fewshot.maml import Objective, Parameters, Sigma

SOFT = ("soft_outer", "soft_constant")
GRADIENTS = (*SOFT, "hard")
WHEN = ("every_step", "first_step")
MEANS = ("separate", "single")

Forward = Callable[..., Any]  # (θ, step) -> models.Output of support and query images, support first


@dataclasses.dataclass(frozen=True)
class Tapl:
    """What is fixed before compilation."""

    gradient: str = "soft_outer"  # one of GRADIENTS
    pseudo_labels: str = "every_step"  # or "first_step": from the initial features, then kept
    query_weight: float = 1.0  # λ; 0 leaves the query images to batch norm alone
    mean: str = "separate"  # over support and over query images; "single": over all of them
    confidence_threshold: float = 0.0  # query images whose likeliest class is less likely have no loss
    adapt_sigma: bool = False  # the inner loop also descends log σ


class Pseudo(NamedTuple):
    probabilities: Float[Array, "NQ N"]  # soft labels
    targets: Float[Array, "NQ N"]  # what the inner loss takes: soft or one-hot, rows of zeros below the threshold


def inner_loss(
    spec: Tapl, logits: Float[Array, "n N"], support_labels: Int[Array, " NK"], targets: Float[Array, "NQ N"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """ℓ(θ; ŷ) from the logits of support and query images, and its two parts, each a mean over its images."""
    shots = support_labels.shape[0]
    support = maml.cross_entropy(logits[:shots], support_labels)
    query = -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits[shots:]), axis=1))
    total = support + spec.query_weight * query
    if spec.mean == "single":
        images = logits.shape[0]
        total = (shots * support + spec.query_weight * (images - shots) * query) / images
    return total, {"support_loss": support, "pseudo_loss": query}


def make_pseudo_labels(
    spec: Tapl,
    propagation: Propagation,
    sigma: Sigma,
    features: Float[Array, "n d"],
    support_labels: Int[Array, " NK"],
    num_classes: int,
) -> Pseudo:
    """Labels of the query images (rows behind the support's), differentiable in features and σ unless hard."""
    scores = propagate(propagation, features, length_scale(propagation, sigma, features), support_labels, num_classes)
    probabilities = soft_labels(scores[support_labels.shape[0] :])
    targets = hard_labels(probabilities) if spec.gradient == "hard" else probabilities
    if spec.confidence_threshold > 0:
        confident = jax.lax.stop_gradient(jnp.max(probabilities, axis=1, keepdims=True)) >= spec.confidence_threshold
        targets = jnp.where(confident, targets, 0.0)
    return Pseudo(probabilities, targets)


def objective(
    spec: Tapl,
    propagation: Propagation,
    forward: Forward,
    support_labels: Int[Array, " NK"],
    first: Parameters,
    initial_sigma: Sigma,
    first_order: bool,
) -> Objective:
    """The inner loss of TAPL, where the inner loop starts from (CxGrad: scaled) weights `first` and `initial_sigma`.

    The σ that its gradient is asked for is {} where σ does not adapt.
    """

    def label(sigma: Sigma, features: Array, logits: Array) -> Pseudo:
        return make_pseudo_labels(spec, propagation, sigma, features, support_labels, logits.shape[1])

    kept = None
    if spec.pseudo_labels == "first_step":
        output = forward(first, 0)
        kept = label(initial_sigma, output.features, output.logits)

    def evaluate(logits: Array, pseudo: Pseudo):
        return inner_loss(spec, logits, support_labels, pseudo.targets)

    def loss(theta: Parameters, step):
        output = forward(theta, step)
        pseudo = label(initial_sigma, output.features, output.logits) if kept is None else kept
        return evaluate(output.logits, jax.lax.stop_gradient(pseudo))

    def gradient(theta: Parameters, sigma: Sigma, step):
        def logits_of(theta: Parameters):
            output = forward(theta, step)
            return output.logits, (output.features, output.moments)

        # One forward pass serves the labels and, pulled back, the gradient: ŷ never enters the function of θ.
        logits, pull_back, (features, moments) = jax.vjp(logits_of, theta, has_aux=True)
        pseudo = label(sigma or initial_sigma, features, logits) if kept is None else kept
        held = pseudo if spec.gradient == "soft_outer" else jax.lax.stop_gradient(pseudo)
        logits_gradient, losses = jax.grad(evaluate, has_aux=True)(logits, held)
        gradients = {"theta": pull_back(logits_gradient)[0]}
        if spec.adapt_sigma:  # θ is constant for this one, so σ acts through the labels alone

            def loss_of(sigma: Sigma):
                return evaluate(logits, label(sigma, features, logits))[0]

            gradients["sigma"] = jax.grad(loss_of)(sigma)
        if first_order:
            gradients = jax.lax.stop_gradient(gradients)
        trace = {**losses, "moments": moments, "pseudo_labels": held.targets, "probabilities": held.probabilities}
        return trace, gradients.get("sigma", {}), gradients["theta"]

    return Objective(loss, gradient)
