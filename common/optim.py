"""Optimisers and learning rates from a config; the rate comes from the optimiser's own step count.

No field has a default here: what an optimiser or a schedule uses must stand in the config file, the rest may be absent.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from common.errors import UserError, did_you_mean

OPTIMIZERS = ("adam", "adamw", "adamw_amsgrad", "sgd")
SCHEDULES = ("constant", "cosine", "warmup_cosine", "step")


def make_schedule(config: ConfigDict) -> optax.Schedule:
    """Return step -> learning rate.

    Args:
      config: `schedule`, `learning_rate`, and what the schedule needs:
        constant: nothing more.
        cosine: half a cosine from `learning_rate` to `final_learning_rate` over `total_steps`, constant after.
        warmup_cosine: linear from `initial_learning_rate` over `warmup_steps`, then the cosine up to `total_steps`
          (warm-up included).
        step: times `decay_factor` from each of the `decay_steps` on.

    Raises:
      UserError: a missing field, an unknown schedule, or a value out of range.
    """
    name = _choice(config, "schedule", SCHEDULES)
    rate = _number(config, "learning_rate", above=0.0)
    if name == "constant":
        return optax.constant_schedule(rate)
    if name == "step":
        return _step_schedule(config, rate)
    total_steps = int(_number(config, "total_steps", above=0.0))
    final_rate = _number(config, "final_learning_rate", least=0.0)
    if name == "cosine":
        return optax.cosine_decay_schedule(rate, total_steps, alpha=final_rate / rate)
    warmup_steps = int(_number(config, "warmup_steps", least=0.0))
    if warmup_steps >= total_steps:
        accepted = f"must be below total_steps, {total_steps}"
        raise UserError(f"the optimizer's warmup_steps is {warmup_steps}, but {accepted}.")
    initial_rate = _number(config, "initial_learning_rate", least=0.0)
    rise = (rate - initial_rate) / max(warmup_steps, 1)
    cosine = optax.cosine_decay_schedule(rate, total_steps - warmup_steps, alpha=final_rate / rate)
    # Not optax.linear_schedule, whose float32 difference of large numbers is off by 1e-4 near a small initial rate.
    return optax.join_schedules([lambda step: initial_rate + rise * step, cosine], [warmup_steps])


def make_optimizer(config: ConfigDict, decayed: Callable[[Any], Any] | None = None) -> optax.GradientTransformation:
    """Return clipping by the global norm, then the optimiser, then the schedule.

    Args:
      decayed: parameters -> the same tree of True where weight decay applies; None: everywhere.
      config: `name`, `clip_norm` (0 = none), `weight_decay` (0 = none), the fields of `make_schedule`, and
        adam: `b1`, `b2`, `eps` (outside the square root, as in PyTorch); weight decay is added to the gradient (L2).
        adamw: the same, with weight decay applied to the parameters, times the learning rate (decoupled).
        adamw_amsgrad: as adamw, on PyTorch's AMSGrad.
        sgd: `momentum` (0 = none), `nesterov`; weight decay is added to the gradient (L2), as in PyTorch.

    Raises:
      UserError: a missing field, an unknown name, or a value out of range.
    """
    name = _choice(config, "name", OPTIMIZERS)
    clip_norm = _number(config, "clip_norm", least=0.0)
    weight_decay = _number(config, "weight_decay", least=0.0)
    decay = [optax.add_decayed_weights(weight_decay, decayed)] if weight_decay else []
    if name == "sgd":
        momentum, nesterov = _number(config, "momentum", least=0.0, below=1.0), bool(_field(config, "nesterov"))
        if nesterov and not momentum:
            raise UserError("the optimizer's nesterov is True, but needs a momentum above 0.")
        parts = [*decay, optax.trace(momentum, nesterov)] if momentum else decay
    else:
        scale = scale_by_torch_amsgrad if name == "adamw_amsgrad" else optax.scale_by_adam
        adam = scale(
            b1=_number(config, "b1", least=0.0, below=1.0),
            b2=_number(config, "b2", least=0.0, below=1.0),
            eps=_number(config, "eps", least=0.0),
        )
        parts = [*decay, adam] if name == "adam" else [adam, *decay]
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    return optax.chain(*clip, *parts, optax.scale_by_learning_rate(make_schedule(config)))


class AmsgradState(NamedTuple):
    """Moments as PyTorch keeps them: neither is bias-corrected."""

    count: Int[Array, ""]
    mean: Any
    square: Any
    largest_square: Any


def scale_by_torch_amsgrad(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """AMSGrad as PyTorch computes it: the maximum is taken over *uncorrected* second moments.

        m, v = Adam's moments;  v_max = max(v_max, v);  update = (m / (1 - b1^t)) / (√v_max / √(1 - b2^t) + eps)

    `optax.scale_by_amsgrad` takes the maximum of the corrected moments: other steps.
    """

    def init(params: Any) -> AmsgradState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AmsgradState(jnp.zeros((), jnp.int32), zeros, zeros, zeros)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AmsgradState]:
        del params
        count = state.count + 1
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, updates)
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.square, updates)
        largest = jax.tree.map(jnp.maximum, state.largest_square, square)

        def scaled(m: Array, v: Array) -> Array:
            t = count.astype(m.dtype)
            return (m / (1 - b1**t)) / (jnp.sqrt(v) / jnp.sqrt(1 - b2**t) + eps)

        return jax.tree.map(scaled, mean, largest), AmsgradState(count, mean, square, largest)

    return optax.GradientTransformation(init, update)


def _step_schedule(config: ConfigDict, rate: float) -> optax.Schedule:
    steps = tuple(_field(config, "decay_steps"))
    factor = _number(config, "decay_factor", above=0.0)
    if any(step < 1 for step in steps) or list(steps) != sorted(set(steps)):
        raise UserError(f"the optimizer's decay_steps is {steps}, but must be increasing whole numbers above 0.")
    return optax.piecewise_constant_schedule(rate, dict.fromkeys(steps, factor))


def _field(config: ConfigDict, name: str) -> Any:
    if name not in config:
        kinds = " ".join(str(config[kind]) for kind in ("name", "schedule") if kind in config)
        raise UserError(f"the optimizer's {name} is missing: {kinds or 'an optimizer'} needs this field in the config.")
    return config[name]


def _choice(config: ConfigDict, name: str, choices: tuple[str, ...]) -> str:
    value = _field(config, name)
    if value not in choices:
        near = did_you_mean(str(value), choices)
        raise UserError(f"the optimizer's {name} is {value!r}, but must be one of {', '.join(choices)}{near}.")
    return value


def _number(
    config: ConfigDict, name: str, above: float = -math.inf, least: float = -math.inf, below: float = math.inf
) -> float:
    value = _field(config, name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and above < value < below and value >= least):
        limits = {"above": above, "at least": least, "below": below}
        accepted = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit))
        raise UserError(f"the optimizer's {name} is {value!r}, but must be a number {accepted}.")
    return float(value)
