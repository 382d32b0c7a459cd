"""CxGrad: contextual gradient scaling for few-shot learning (Lee, Lee, Song, WACV 2022, arXiv 2110.10353).

In MAML's inner loop the head's gradient dwarfs the backbone's, so the backbone hardly adapts. CxGrad rescales the
backbone's gradients, layer by layer, by factors γ that a small generator makes from a context vector c, which is
itself adapted to the task. As in the official code, the gradients are scaled through the weights: before each inner
step the kernel W_l of layer l becomes Ŵ_l = γ_l(c) W_l / ‖W_l‖. A convolution followed by batch normalisation does not
feel the norm of its kernel, so this leaves the function unchanged, and the gradient grows by 1/γ_l: a step of size α
turns the kernel's direction by α/γ_l². A smaller γ_l is a larger step of layer l.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fewshot.maml import Gradient, Loss, Parameters, descend

Generator = dict[str, dict[str, Array]]


def scaled_layers(theta: Parameters) -> list[str]:
    """Paths of the convolution kernels in forward order: only these are scaled, never head, biases or norms."""
    return sorted(path for path, leaf in theta.items() if leaf.ndim == 4)


def init_generator(key: Array, context_size: int, num_layers: int) -> Generator:
    """Weights of G: P -> P -> L, uniform in ±1/sqrt(fan_in), which puts γ at about 0.55 to 0.85."""
    bound = context_size**-0.5
    shapes = {"hidden": (context_size, context_size), "output": (context_size, num_layers)}
    generator = {}
    for name, shape in shapes.items():
        key, kernel_key, bias_key = jax.random.split(key, 3)
        generator[name] = {
            "kernel": jax.random.uniform(kernel_key, shape, minval=-bound, maxval=bound),
            "bias": jax.random.uniform(bias_key, shape[1:], minval=-bound, maxval=bound),
        }
    return generator


def scale_factors(generator: Generator, context: Float[Array, " P"]) -> Float[Array, " L"]:
    """γ = softplus(W_2 relu(W_1 c + b_1) + b_2) > 0, one factor per convolution layer."""
    hidden = jax.nn.relu(context @ generator["hidden"]["kernel"] + generator["hidden"]["bias"])
    return jax.nn.softplus(hidden @ generator["output"]["kernel"] + generator["output"]["bias"])


def scale_weights(theta: Parameters, factors: Float[Array, " L"]) -> Parameters:
    """S(θ, c): Ŵ_l = γ_l W_l / ‖W_l‖ with the Frobenius norm of the whole kernel; the rest of θ is left as it is.

    There is no epsilon, as in the official code: a kernel of norm zero gives NaN.
    """
    scaled = dict(theta)
    for path, factor in zip(scaled_layers(theta), factors, strict=True):
        kernel = theta[path]
        scaled[path] = factor * kernel / jnp.sqrt(jnp.sum(kernel * kernel))
    return scaled


def initial_context(
    loss: Loss,
    theta: Parameters,
    factors: Callable[[Array], Array],
    context: Float[Array, " P"],
    context_rate: float,
) -> Float[Array, " P"]:
    """c_0 = c - β ∇_c L_support(S(θ, c)) from c = 0. θ does not move, and the outer loop sees c_0 as a constant."""
    gradient, _ = jax.grad(lambda c: loss(scale_weights(theta, factors(c))), has_aux=True)(context)
    return context - context_rate * jax.lax.stop_gradient(gradient)


def inner_step(
    gradient_of: Gradient,
    theta: Parameters,
    context: Float[Array, " P"],
    factors: Callable[[Array], Array],
    rates: dict[str, Float[Array, ""]],
    context_rate: float,
    first_order: bool,
) -> tuple[Parameters, Float[Array, " P"], tuple[Any, Any, Parameters]]:
    """One inner step: θ_{t+1}, c_{t+1} and what `gradient_of` gives at the scaled weights, its gradient last.

        θ̂_t = S(θ_t, c_t)
        g_t = ∇_θ̂ L_support(θ̂_t)           with respect to the scaled weights
        θ_{t+1} = θ̂_t - α g_t               from the scaled weights, not from θ_t
        c_{t+1} = c_t - β (∂θ̂_t/∂c_t)ᵀ g_t   no second backward pass: g_t is pulled back through S

    `context_rate` 0 keeps c where it is. First order stops g_t (in `gradient_of`) and the context's gradient, yet the
    outer gradient still reaches θ and the generator through S.
    """
    scaled, pull_back = jax.vjp(lambda c: scale_weights(theta, factors(c)), context)
    evaluated = gradient_of(scaled)
    gradient = evaluated[2]
    (context_gradient,) = pull_back(gradient)
    if first_order:
        context_gradient = jax.lax.stop_gradient(context_gradient)
    return descend(scaled, gradient, rates), context - context_rate * context_gradient, evaluated
