"""Classification with the labels: no pretext task but an upper bound, with the same budget."""

import jax.numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from common.config import check as check_field
from multitask.losses import cross_entropy
from multitask.tasks.task import Context, Rows, Task, View, linear_head

NAMES = ("supervised",)


def make(name: str, context: Context) -> Task:
    """Rows: the labels."""

    def memory(labels: Array) -> Rows:
        return {"labels": labels}

    def view(key: Array, images: Array, rows: Rows) -> View:
        return View(images, rows["labels"])

    def loss(logits: Array, labels: Array, critic: None) -> tuple[Array, dict[str, Array]]:
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
        return cross_entropy(logits, labels).mean(), {"accuracy": accuracy}

    return Task(name, linear_head(context.num_classes), view, loss, memory=memory)


def check(config: ConfigDict) -> None:
    """Raise UserError for fields with which the task cannot work."""
    accepted = "must be empty for the task 'supervised', which needs a label for each image"
    check_field(config, "unlabelled_split", not config.unlabelled_split, accepted)
