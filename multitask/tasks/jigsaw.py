"""In which order do the tiles of the image stand? [Noroozi and Favaro 2016; whole images: Carlucci et al. 2019]"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from common.config import check as check_field
from multitask import views
from multitask.losses import cross_entropy
from multitask.tasks.task import Context, Rows, Task, View, linear_head

NAMES = ("jigsaw",)


def make(name: str, context: Context) -> Task:
    """One of `num_perms` orders, drawn for each image."""
    fields = context.config.jigsaw
    permutations = views.jigsaw_permutations(fields.grid, fields.num_perms)

    def view(key: Array, images: Array, rows: Rows) -> View:
        drawn = jax.random.randint(key, (images.shape[0],), 0, fields.num_perms)
        return View(shuffle_middle(images, jnp.asarray(permutations)[drawn], fields.grid, fields.crop), drawn)

    def loss(logits: Array, drawn: Array, critic: None) -> tuple[Array, dict[str, Array]]:
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == drawn)
        return cross_entropy(logits, drawn).mean(), {"accuracy": accuracy}

    return Task(name, linear_head(fields.num_perms), view, loss)


def shuffle_middle(
    images: Float[Array, "n s s c"], permutations: Int[Array, "n T"], grid: int, crop: int
) -> Float[Array, "n s s c"]:
    """The middle of `crop` pixels a side (0: everything) with its tiles moved, and 0 around it."""
    side = images.shape[1]
    crop = crop or side
    first = (side - crop) // 2
    middle = images[:, first : first + crop, first : first + crop]
    around = (first, side - crop - first)
    return jnp.pad(views.jigsaw_shuffle(middle, permutations, grid), ((0, 0), around, around, (0, 0)))


def check(config: ConfigDict) -> None:
    """Raise UserError for fields with which the task cannot work."""
    fields, side = config.jigsaw, config.image_size
    check_field(config, "jigsaw.grid", fields.grid in (2, 3), "must be 2 or 3")
    most = math.factorial(fields.grid**2)
    fits = 2 <= fields.num_perms <= most
    check_field(config, "jigsaw.num_perms", fits, f"must be 2 to {most}, the orders of {fields.grid**2} tiles")
    check_field(config, "jigsaw.crop", 0 <= fields.crop <= side, f"must be 0 to config.image_size, {side}")
    used = fields.crop or side
    divides = f"must divide the {used} pixels that are cut into tiles (config.jigsaw.crop, or all of the image)"
    check_field(config, "jigsaw.grid", used % fields.grid == 0, divides)
