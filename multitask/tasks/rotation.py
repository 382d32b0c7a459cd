"""By how many quarter turns has the image been rotated? [Gidaris et al. 2018]"""

import jax
import jax.numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from common.config import check as check_field
from multitask import views
from multitask.losses import cross_entropy
from multitask.tasks.task import Context, Rows, Task, View, linear_head

NAMES = ("rotation",)


def make(name: str, context: Context) -> Task:
    """All four turns of each image, or one at random."""
    num_views = context.config.rotation.num_views

    def view(key: Array, images: Array, rows: Rows) -> View:
        n = images.shape[0]
        if num_views == 4:
            turned = views.rotate_all(images)
            return View(turned.reshape(4 * n, *images.shape[1:]), jnp.tile(jnp.arange(4), n))
        turns = jax.random.randint(key, (n,), 0, 4)
        return View(views.rotate_quarter(images, turns), turns)

    def loss(logits: Array, turns: Array, critic: None) -> tuple[Array, dict[str, Array]]:
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == turns)
        return cross_entropy(logits, turns).mean(), {"accuracy": accuracy}

    return Task(name, linear_head(4), view, loss, num_views=num_views)


def check(config: ConfigDict) -> None:
    """Raise UserError for fields with which the task cannot work."""
    check_field(config, "rotation.num_views", config.rotation.num_views in (1, 4), "must be 1 or 4")
