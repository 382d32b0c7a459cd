"""The encoder's codes must pass for samples of N(0, I): adversarial auto-encoder [Makhzani et al. 2015]."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from common.config import check as check_field
from common.config import check_positive
from multitask.losses import discriminator_loss, generator_loss
from multitask.tasks.task import Context, Critic, Rows, Task, View, linear_head

NAMES = ("adversarial",)


class Discriminator(nn.Module):
    """Two hidden layers with leaky ReLU (slope 0.2), one logit."""

    hidden: int

    @nn.compact
    def __call__(self, codes: Float[Array, "n d"]) -> Float[Array, " n"]:
        x = codes
        for _ in range(2):
            x = nn.leaky_relu(nn.Dense(self.hidden)(x), 0.2)
        return nn.Dense(1)(x)[:, 0]


def make(name: str, context: Context) -> Task:
    """The task's loss is the generator's; the critic takes its own step before it."""
    fields = context.config.adversarial
    critic = Discriminator(fields.hidden)

    def judge(params: dict, codes: Array) -> Float[Array, " n"]:
        logits: Array = critic.apply({"params": params}, codes)  # pyright: ignore[reportAssignmentType]
        return logits

    def critic_loss(params: dict, codes: Array, key: Array) -> Float[Array, ""]:
        return discriminator_loss(judge(params, jax.random.normal(key, codes.shape)), judge(params, codes))

    def init(key: Array) -> dict:
        variables: Any = critic.init(key, jnp.zeros((1, fields.code_dim)))
        return variables["params"]

    def view(key: Array, images: Array, rows: Rows) -> View:
        return View(images, jnp.zeros(images.shape[0]))

    def loss(codes: Array, target: Array, params: dict) -> tuple[Array, dict[str, Array]]:
        return generator_loss(judge(params, codes)), {"code_norm": jnp.mean(jnp.linalg.norm(codes + 1e-12, axis=-1))}

    optimizer = optax.adam(fields.learning_rate, b1=fields.b1)
    return Task(name, linear_head(fields.code_dim), view, loss, critic=Critic(init, critic_loss, optimizer))


def check(config: ConfigDict) -> None:
    """Raise UserError for fields with which the task cannot work."""
    check_positive(config, *(f"adversarial.{field}" for field in ("code_dim", "hidden", "learning_rate")))
    check_field(config, "adversarial.b1", 0 <= config.adversarial.b1 < 1, "must lie in 0..1, below 1")
