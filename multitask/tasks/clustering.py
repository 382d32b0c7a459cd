"""To which cluster of images does this one belong? The clusters are drawn anew between epochs [Caron et al. 2018]."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from common.config import check as check_field
from common.config import check_choice, check_positive
from multitask.clustering_metrics import nmi
from multitask.losses import cross_entropy, weighted_mean
from multitask.pseudo_labels import assign_pseudo_labels, cluster_weights
from multitask.tasks.task import Context, Rows, Task, View, linear_head

NAMES = ("clustering",)


def make(name: str, context: Context) -> Task:
    """Rows: pseudo-labels, those before them (-1: none), and weights that make up for clusters of different sizes."""
    fields = context.config.clustering_task

    def memory(labels: Array) -> Rows:
        nothing = jnp.full(labels.shape, -1, jnp.int32)
        return {"labels": nothing, "previous": nothing, "weights": jnp.ones(labels.shape)}

    def relabel(features: Array, rows: Rows, key: Array) -> Rows:
        dim = min(fields.pca_dim, features.shape[1])
        labels = assign_pseudo_labels(features, fields.num_clusters, dim, key)
        weights = cluster_weights(labels, fields.num_clusters)
        if fields.balance == "none":
            weights = jnp.ones_like(weights)
        return {"labels": labels, "previous": rows["labels"], "weights": weights}

    def view(key: Array, images: Array, rows: Rows) -> View:
        return View(images, {"labels": rows["labels"], "weights": rows["weights"]})

    def loss(logits: Array, target: dict[str, Array], critic: None) -> tuple[Array, dict[str, Array]]:
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == target["labels"])
        losses = cross_entropy(logits, target["labels"])
        return weighted_mean(losses, target["weights"]), {"accuracy": accuracy}

    head = linear_head(fields.num_clusters)
    return Task(name, head, view, loss, memory=memory, relabel=relabel, report=report)


def report(rows: Rows, labels: np.ndarray) -> dict[str, float]:
    """Agreement with the clusters before, and with the labels where there are any; clusters that have images."""
    found = {name: np.asarray(jax.device_get(rows[name])) for name in ("labels", "previous")}
    numbers = {"clusters": float(len(np.unique(found["labels"])))}
    if found["previous"][0] >= 0:
        numbers["nmi_to_previous"] = nmi(found["previous"], found["labels"])
    known = labels >= 0
    if known.any():
        numbers["nmi_to_labels"] = nmi(labels[known], found["labels"][known])
    return numbers


def check(config: ConfigDict) -> None:
    """Raise UserError for fields with which the task cannot work."""
    fields = config.clustering_task
    check_positive(config, "clustering_task.pca_dim", "clustering_task.refresh_epochs")
    check_field(config, "clustering_task.num_clusters", fields.num_clusters >= 2, "must be at least 2")
    check_choice(config, "clustering_task.balance", ("weights", "none"))
    check_choice(config, "clustering_task.feature_source", ("online", "teacher"))
