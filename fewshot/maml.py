"""MAML: learn an initialisation from which a few gradient steps solve a task (Finn, Abbeel, Levine 2017).

    inner:  θ_{t+1} = θ_t - α ∇_θ L_support(θ_t),  t = 0 .. T-1
    outer:  min over θ_0 of the mean over tasks of L_query(θ_T)

θ holds the parameters that adapt to a task, ω those that only the outer loop learns; both are flat dictionaries
from a parameter's path ("conv0/kernel") to its array.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

Parameters = dict[str, Array]
Loss = Callable[[Parameters], tuple[Array, Any]]  # θ -> (inner loss, anything else worth keeping)
Gradient = Callable[[Parameters], tuple[Any, Any, Parameters]]  # θ -> (two things worth keeping, gradient of the loss)
Sigma = dict[str, Any]  # what is learned of label propagation's length scale (TAPL); {} elsewhere


class Objective(NamedTuple):
    """The inner loss of one task: of its support set, or with pseudo-labelled query images too (TAPL)."""

    loss: Callable[..., tuple[Array, Any]]  # (θ, step) -> loss, anything; for CxGrad's first context, a constant
    gradient: Callable[..., tuple[dict[str, Any], Sigma, Parameters]]  # (θ, σ, step) -> trace, gradients of σ and θ


ADAPTED = ("all", "head", "backbone", "all_and_norm")


def split_parameters(params: dict, adapted: str) -> tuple[Parameters, Parameters]:
    """Split network parameters into (θ, ω).

    `adapted`: "all" = convolutions and head (MAML); "head" (ANIL, Raghu et al. 2020); "backbone" = convolutions alone
    (BOIL, Oh et al. 2021); "all_and_norm" = the scale and shift of the norm layers too. Raises ValueError on any other.
    """
    if adapted not in ADAPTED:
        raise ValueError(f"adapted is {adapted!r}, but one of {', '.join(ADAPTED)} is expected.")

    def adapts(path: str) -> bool:
        layers = path.split("/")
        if layers[0] == "head":
            return adapted != "backbone"
        if any(layer.startswith("norm") for layer in layers):
            return adapted == "all_and_norm"
        return adapted != "head"

    flat = cast(Parameters, flatten_dict(params, sep="/"))
    theta = {path: leaf for path, leaf in flat.items() if adapts(path)}
    return theta, {path: leaf for path, leaf in flat.items() if path not in theta}


def join_parameters(theta: Parameters, omega: Parameters) -> dict:
    """The nested parameters that `split_parameters` split."""
    return unflatten_dict({**omega, **theta}, sep="/")


def cross_entropy(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Float[Array, ""]:
    """Mean over the examples of -log softmax(logits)[label], in nats."""
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.sum(log_probabilities * jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype), axis=1))


def support_gradient(loss: Loss, theta: Parameters, first_order: bool) -> tuple[Float[Array, ""], Any, Parameters]:
    """L_support(θ), what else the loss returns, and ∇_θ L_support(θ).

    The gradient is itself differentiated by the outer loop, unless `first_order` makes it a constant (FOMAML).
    """
    (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(theta)
    return value, aux, jax.lax.stop_gradient(gradient) if first_order else gradient


def support_objective(forward: Callable[..., Any], labels: Int[Array, " NK"], first_order: bool) -> Objective:
    """L_support; `forward(θ, step)` is the network's output on the support images."""

    def loss(theta: Parameters, step):
        output = forward(theta, step)
        return cross_entropy(output.logits, labels), output.moments

    def gradient(theta: Parameters, sigma: Sigma, step):
        del sigma
        value, moments, gradient = support_gradient(lambda theta: loss(theta, step), theta, first_order)
        return {"support_loss": value, "moments": moments}, {}, gradient

    return Objective(loss, gradient)


def descend(theta: Parameters, gradient: Parameters, rates: dict[str, Float[Array, ""]]) -> Parameters:
    """θ - α ∇_θ L, with one rate per parameter tensor."""
    return {path: theta[path] - rates[path] * gradient[path] for path in theta}
